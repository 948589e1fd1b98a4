"""The server that takes feedback over HTTP: routes, token, process. It needs the extra ``serve``."""
