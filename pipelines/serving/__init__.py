"""The HTTP server of `alfine serve`: the OpenAI-compatible API and the web page."""
