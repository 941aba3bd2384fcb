"""`rwkv-runtime serve`: an OpenAI-compatible server of several processes over one store.

A supervisor loads the weights and keeps the workers running; a worker is an ASGI application over
`rwkv_runtime.serving`. Nothing here computes, and no prompt's text is logged.
"""
