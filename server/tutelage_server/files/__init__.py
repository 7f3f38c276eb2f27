"""Files: streamed up and down, resumable, with their hashes.

An upload grows in `home/uploads/ID`. When it is whole and its hash is right it goes into the storage under a key of its
own, and only then does its row say `processed`: what is in the storage is never half a file. Names are data; no path is
ever made of one.
"""
