"""An HTTP server for one model, as OpenAI's, llama.cpp's and allamo's: python -m llama.server (extra: serve).

__main__.py   the command line               app.py        all routes, behind the limits
engine.py     the thread that runs the model, and its queue (fair.py)
openai.py, llamacpp.py, allamo.py            what each of them calls its endpoints
service.py    what the endpoints share       schemas.py    what requests may say
choices.py    events of the engine to texts with log-probabilities
constrain.py  JSON by a schema
errors.py, limits.py, metrics.py             what all endpoints share
"""
