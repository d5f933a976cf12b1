"""A server of Search-R1's shape, as its authors write it, with bare tantivy in the retriever's place.

``python search_r1_peer.py INDEX_FOLDER PORT``
"""

import re
import sys
from typing import Any

import tantivy
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class QueryRequest(BaseModel):
    """The body of a request."""

    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


def retrieved(text: str, topk: int) -> list[dict[str, Any]]:
    """The best documents for a query."""
    query = index.parse_query(" ".join(re.findall(r"\w+", text)), ["title", "text"])
    found = []
    for score, address in searcher.search(query, topk).hits:
        document = searcher.doc(address)
        contents = f'"{document.get_first("title")}"\n{document.get_first("text")}'
        found.append({"document": {"id": document.get_first("url"), "contents": contents}, "score": score})
    return found


@app.post("/retrieve")
def retrieve_endpoint(request: QueryRequest) -> dict[str, Any]:
    """Search-R1's one route, as a synchronous handler."""
    return {"result": [retrieved(text, request.topk or 3) for text in request.queries]}


if __name__ == "__main__":
    index = tantivy.Index.open(sys.argv[1])
    searcher = index.searcher()
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
