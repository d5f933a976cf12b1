"""Answers of tools kept on disk: safe to open whoever wrote to the folder, shared by processes, never fatal."""
