"""The caller's side: known servers, requests that are tried again, files on their way."""
