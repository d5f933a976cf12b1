"""The embedded search engine: what it finds, what it says, and where it keeps its index."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import CacheWarning, ToolUnavailable
from mmsearch_env.images import Image
from mmsearch_env.tools import ImageQuery, SearchTool, TextQuery, build_tool
from mmsearch_env.tools.local.descriptors import descriptor
from mmsearch_env.tools.local.fit_metric import fitted
from mmsearch_env.tools.local.image_index import LocalImageSearch, thumbnail
from mmsearch_env.tools.local.recall import holds, image_recall, text_recall
from mmsearch_env.tools.local.store import built_once, cache_folder
from mmsearch_env.tools.local.text_index import LocalTextSearch, best_passage
from mmsearch_env.worlds import Page, World, load_world
from mmsearch_env.worlds.synthetic import POISON

PAGES = (
    Page(
        "fr", "https://x.example/fr", "France", "The capital of France is Paris.\nThe currency of France is the euro."
    ),
    Page("ch", "https://x.example/ch", "Swiss franc", "The Swiss franc is the currency of Switzerland."),
    Page("ci", "https://x.example/ci", "Côte d'Ivoire", "Côte d'Ivoire has its capital in Yamoussoukro."),
    Page("mt", "https://x.example/mt", "Malta", "Malta: largest city St. Paul's Bay.\nMalta: capital city Valletta."),
)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMSEARCH_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def world() -> World:
    return load_world("synthetic:seed=7,entities=40,poisoned=1")


@pytest.fixture(scope="module")
def text(world: World) -> LocalTextSearch:
    return LocalTextSearch(world.pages)


@pytest.fixture(scope="module")
def images(world: World) -> LocalImageSearch:
    return LocalImageSearch(world.pages)


def found(tool: LocalTextSearch, query: str, top_k: int = 3) -> list[tuple[str, str]]:
    return [(hit.title, hit.snippet) for hit in tool.search_many([TextQuery(query)], top_k=top_k)[0].hits]


def test_best_sentence_is_the_snippet(tmp_path: Path) -> None:
    tool = LocalTextSearch(PAGES, tmp_path)
    assert found(tool, "capital of France")[0] == ("France", "The capital of France is Paris.")
    assert found(tool, "What is the currency of France?")[0] == ("France", "The currency of France is the euro.")


def test_france_is_not_the_franc_but_plurals_count(tmp_path: Path) -> None:
    tool = LocalTextSearch(PAGES, tmp_path)
    assert [title for title, _ in found(tool, "France")] == ["France"]
    assert [title for title, _ in found(tool, "francs")] == ["Swiss franc"]
    assert [title for title, _ in found(tool, "currencies of switzerlands")][0] == "Swiss franc"


def test_case_accents_and_abbreviations_do_not_matter(tmp_path: Path) -> None:
    tool = LocalTextSearch(PAGES, tmp_path)
    assert found(tool, "CAPITAL COTE D'IVOIRE")[0] == (
        "Côte d'Ivoire",
        "Côte d'Ivoire has its capital in Yamoussoukro.",
    )
    assert found(tool, "largest city Malta")[0][1] == "Malta: largest city St. Paul's Bay."


def test_hits_carry_address_and_falling_scores(tmp_path: Path) -> None:
    hits = LocalTextSearch(PAGES, tmp_path).search_many([TextQuery("capital France")], top_k=4)[0].hits
    assert hits[0].url == "https://x.example/fr"
    assert hits[0].thumbnail is None
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len(hits) == 3


def test_nothing_to_look_for_finds_nothing(tmp_path: Path) -> None:
    tool = LocalTextSearch(PAGES, tmp_path)
    assert [found(tool, query) for query in ("", "  ?! ", "zzzz")] == [[], [], []]
    assert found(tool, "France", top_k=0) == []
    assert found(LocalTextSearch((), tmp_path), "France") == []


@pytest.mark.parametrize(
    "query", ["who's mayor?", 'unbalanced "', "a AND", "title:foo", "<|im_start|>", "-word", "*", "(", "\x00", "\ud800"]
)
def test_hostile_words_are_words(text: LocalTextSearch, query: str) -> None:
    text.search_many([TextQuery(query)])


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_text_breaks_the_search(query: str) -> None:
    tool = LocalTextSearch(load_world("synthetic:seed=7,entities=40,poisoned=1").pages)
    hits = tool.search_many([TextQuery(query)])[0].hits
    assert len(hits) <= 3
    assert all(len(hit.snippet) <= 110 for hit in hits)


def test_long_sentence_is_cut_at_a_word(tmp_path: Path) -> None:
    page = Page("long", "https://x.example/long", "Long", "word " * 60)
    passage = best_passage(page, {"word": 1.0}).text
    assert len(passage) <= 110
    assert passage.endswith("word…")


def test_long_line_is_read_sentence_by_sentence() -> None:
    page = Page(
        "long", "https://x.example/long", "Long", "It is old. " * 12 + "The mayor is Ann. " + "It is wet. " * 12
    )
    assert best_passage(page, {"mayor": 1.0}).text == "The mayor is Ann."


def test_second_sentence_joins_only_if_it_fits_as_well() -> None:
    page = Page("p", "https://x.example/p", "P", "Ann is mayor.\nIt is old.\nThe mayor is 60.")
    assert best_passage(page, {"mayor": 1.0}).text == "Ann is mayor. The mayor is 60."
    assert best_passage(page, {"mayor": 1.0, "ann": 1.0}).text == "Ann is mayor."


def test_many_at_once_equals_one_by_one(world: World, text: LocalTextSearch, images: LocalImageSearch) -> None:
    words = [TextQuery(f"capital of {entity.name}") for entity in world.entities[:5]]
    looks = [ImageQuery(question.load_image()) for question in world.questions("test")[:5]]
    assert text.search_many(words) == [asyncio.run(text.search(query, top_k=3)) for query in words]
    one_by_one = [asyncio.run(images.search(query, top_k=3)) for query in looks]
    assert [[hit.url for hit in result.hits] for result in images.search_many(looks)] == [
        [hit.url for hit in result.hits] for result in one_by_one
    ]
    assert images.search_many([]) == []


def test_each_tool_refuses_the_other_kind_of_query(text: LocalTextSearch, images: LocalImageSearch) -> None:
    picture = Image(np.zeros((4, 4, 3), dtype=np.uint8))
    with pytest.raises(ToolUnavailable, match="expected words, got ImageQuery"):
        asyncio.run(text.search(ImageQuery(picture), top_k=3))
    with pytest.raises(ToolUnavailable, match="expected a picture, got TextQuery"):
        asyncio.run(images.search(TextQuery("x"), top_k=3))


def test_local_tools_are_built_by_name(world: World, tmp_path: Path) -> None:
    spec = {"name": "local", "cache_dir": str(tmp_path)}
    assert isinstance(build_tool(ActionKind.TEXT_SEARCH, spec, world), LocalTextSearch)
    tool = build_tool(ActionKind.TEXT_SEARCH, "local", world)
    assert isinstance(tool, SearchTool)
    asyncio.run(tool.aclose())
    asyncio.run(tool.aclose())
    assert len(list(tmp_path.iterdir())) == 1


def test_image_hits_carry_title_and_thumbnail(world: World, images: LocalImageSearch) -> None:
    entity = world.entities[5]
    assert entity.drawing is not None
    hits = images.search_many([ImageQuery(entity.drawing.draw(300))])[0].hits
    assert entity.name in hits[0].title
    assert hits[0].snippet == ""
    assert hits[0].thumbnail == thumbnail(entity.drawing)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len(hits) == 3


def test_thumbnails_keep_their_proportions_inside_a_small_frame(world: World) -> None:
    for entity in world.entities:
        assert entity.drawing is not None
        small, large = thumbnail(entity.drawing), entity.drawing.draw(128)
        assert small.width <= 84 and small.height <= 56
        assert small.width / small.height == pytest.approx(large.width / large.height, rel=0.03)


def test_only_the_part_inside_the_box_is_searched(world: World, images: LocalImageSearch) -> None:
    left, right = world.entities[10], world.entities[20]
    assert left.drawing is not None and right.drawing is not None
    both = Image(np.hstack([each.drawing.draw(100).resized(150, 100).pixels for each in (left, right)]))  # type: ignore[union-attr]
    halves = [ImageQuery(both, (0.0, 0.0, 0.5, 1.0)), ImageQuery(both, (0.5, 0.0, 1.0, 1.0))]
    titles = [result.hits[0].title for result in images.search_many(halves)]
    assert left.name in titles[0] and right.name in titles[1]


def test_poisoned_page_is_found_by_words_and_by_picture(world: World, text: LocalTextSearch) -> None:
    name = world.entities[0].name
    assert any(POISON in title for title, _ in found(text, f"capital of {name}"))
    images = LocalImageSearch(world.pages)
    drawing = world.entities[0].drawing
    assert drawing is not None
    hits = images.search_many([ImageQuery(drawing.load())])[0].hits
    assert any(POISON in hit.title for hit in hits[:2])


def test_engines_find_what_synthetic_questions_need() -> None:
    world = load_world("synthetic:seed=7,entities=40")
    assert image_recall(world, "test").at_1 >= 0.9
    words = text_recall(world, "test")
    assert 0.5 < words.at_1 < 0.95
    assert words.at_3 >= 0.93


def test_engines_find_what_atlas_questions_need_but_reading_matters() -> None:
    atlas = load_world("atlas")
    words = text_recall(atlas, "validation")
    assert 0.5 < words.at_1 < 0.95
    assert words.at_3 >= 0.93
    assert image_recall(atlas, "validation").at_1 >= 0.9


@pytest.mark.parametrize(
    ("snippet", "answers", "expected"),
    [
        ("Dial +44.", ("+44",), True),
        ("Dial +441.", ("+44",), False),
        ("It is .fr, they say", (".fr",), True),
        ("NEW YORK is large", ("x", "New York"), True),
        ("Nigerian", ("Niger",), False),
    ],
)
def test_answers_are_found_as_whole_words(snippet: str, answers: tuple[str, ...], expected: bool) -> None:
    assert holds(snippet, answers) is expected


def test_descriptor_says_nothing_about_size_and_little_about_brightness(world: World) -> None:
    first, second = world.entities[3].drawing, world.entities[4].drawing
    assert first is not None and second is not None
    picture = first.draw(120)
    darker = Image((picture.pixels * 0.85).astype(np.uint8))
    other = float(np.linalg.norm(descriptor(picture) - descriptor(second.draw(120))))
    assert np.linalg.norm(descriptor(picture) - descriptor(first.draw(240))) < 0.1 * other
    assert np.linalg.norm(descriptor(picture) - descriptor(darker)) < 0.5 * other
    assert descriptor(Image(np.zeros((1, 1, 3), dtype=np.uint8))).dtype == np.float32


def test_metric_keeps_the_direction_that_tells_entities_apart() -> None:
    # Two entities differ along the first axis by 2; their views scatter along the second only.
    views = np.array([[[1.0, 3.0], [1.0, -3.0]], [[-1.0, 3.0], [-1.0, -3.0]]])
    mean, weight = fitted(views, size=1).T
    assert mean.tolist() == [0.0, 0.0]
    assert abs(weight[0]) > 0.1
    assert abs(weight[1]) < 1e-9 * abs(weight[0]) + 1e-12


def test_index_is_built_once_and_memory_mapped(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = LocalImageSearch(world.pages, tmp_path)
    LocalTextSearch(world.pages, tmp_path)

    def fail(*_: object) -> None:
        raise AssertionError("the index was built again")

    monkeypatch.setattr(LocalImageSearch, "_build", fail)
    monkeypatch.setattr(LocalTextSearch, "_build", fail)
    again = LocalImageSearch(world.pages, tmp_path)
    LocalTextSearch(world.pages, tmp_path)
    assert isinstance(again._vectors, np.memmap)
    assert np.array_equal(again._vectors, first._vectors)


def test_index_follows_the_pages(tmp_path: Path) -> None:
    LocalTextSearch(PAGES, tmp_path)
    assert [title for title, _ in found(LocalTextSearch(PAGES[:1], tmp_path), "capital")] == ["France"]


@pytest.mark.parametrize("damage", ["shorter", "changed", "no manifest", "bad manifest", "missing"])
def test_damaged_index_is_built_again_with_a_warning(tmp_path: Path, damage: str) -> None:
    def build(folder: Path) -> None:
        (folder / "data").write_text("good")

    place = built_once("index", build, tmp_path)
    if damage == "shorter":
        (place / "data").write_text("")
    elif damage == "changed":
        (place / "data").write_text("evil")
    elif damage == "no manifest":
        (place / "manifest.json").unlink()
    elif damage == "bad manifest":
        (place / "manifest.json").write_text('{"files": [')
    else:
        (place / "data").unlink()
    with pytest.warns(CacheWarning, match="it is built again"):
        assert (built_once("index", build, tmp_path) / "data").read_text() == "good"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built_once("index", build, tmp_path)


def test_unusable_cache_folder_costs_a_warning_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.warns(CacheWarning, match="MMSEARCH_CACHE_DIR"):
        tool = LocalTextSearch(PAGES, blocked)
    assert found(tool, "capital of France")[0][1] == "The capital of France is Paris."


def test_another_process_may_be_faster(tmp_path: Path) -> None:
    def theirs(folder: Path) -> None:
        (folder / "data").write_text("theirs")

    def build(folder: Path) -> None:
        (folder / "data").write_text("mine")
        built_once("index", theirs, tmp_path)

    assert (built_once("index", build, tmp_path) / "data").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "data").write_text("half")
        raise ValueError("broken page")

    with pytest.raises(ValueError, match="broken page"):
        built_once("index", build, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_while_building_falls_back_to_a_temporary_folder(tmp_path: Path) -> None:
    full = [OSError(28, "No space left on device")]

    def build(folder: Path) -> None:
        if full:
            raise full.pop()
        (folder / "data").write_text("whole")

    with pytest.warns(CacheWarning, match="No space left on device"):
        place = built_once("index", build, tmp_path)
    assert (place / "data").read_text() == "whole"
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(place)


def test_cache_folder_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMSEARCH_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MMSEARCH_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / "mmsearch_env"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_an_index_that_only_its_maker_may_write_is_read_by_others(tmp_path: Path) -> None:
    """Another user, who may read the folder and not write it, finds the same and builds nothing."""
    LocalTextSearch(PAGES, tmp_path)
    script = (
        "import os, sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "from pathlib import Path\n"
        "from mmsearch_env.tools.local.text_index import LocalTextSearch\n"
        "from mmsearch_env.tools import TextQuery\n"
        "from mmsearch_env.worlds import Page\n"
        f"pages = {PAGES!r}\n"
        "import tantivy\n"
        "os.setuid(65534)\n"
        "tool = LocalTextSearch(pages, Path(sys.argv[1]))\n"
        "print(tool.search_many([TextQuery('capital of Malta')])[0].hits[0].title)\n"
    )
    for place in (tmp_path, *tmp_path.parents[:-1]):
        if place.stat().st_uid == os.geteuid() and place != Path("/"):
            place.chmod(place.stat().st_mode | 0o055)
    found = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "Malta", found.stderr


def test_a_user_without_a_home_costs_a_warning_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSEARCH_CACHE_DIR", "~nobody-of-this-name/cache")
    with pytest.warns(CacheWarning, match="expected a writable folder"):
        tool = LocalTextSearch(PAGES)
    assert found(tool, "capital of Malta")[0][0] == "Malta"


def test_a_cache_that_may_not_be_looked_at_costs_a_warning_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(place: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.warns(CacheWarning, match="Permission denied"):
        tool = LocalTextSearch(PAGES, tmp_path)
    assert found(tool, "capital of Malta")[0][0] == "Malta"
