"""The streams of this project: one file each, named like the stream."""
