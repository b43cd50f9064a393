"""Backlog files and the files a replay writes: read as a stream, written so that progress is never ahead of output."""
