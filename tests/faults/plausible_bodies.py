"""A hook of schemathesis: lets half of the bodies that it makes get past the first check.

The schema cannot say what a message is, or which models there are, so that nearly all bodies would
end there.  Loaded by `serve_malformed.py`.
"""

import random
from typing import Any

import schemathesis

_TEXTS = ["类型#裤*材质#丝绒", "你好", " ", "[gMASK] </s>", "\0", "\U0001f600", "x" * 300]
_ROLES = ["user", "user", "user", "assistant", "system", "tool", "developer"]


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Replace what is in a body by what could be there; which, follows from the body."""
    rng = random.Random(repr(body))
    if not isinstance(body, dict) or rng.random() < 0.5:
        return body
    body = dict(body)
    if "messages" in body:
        roles = [rng.choice(_ROLES) for _ in range(rng.randrange(3))]
        roles += ["user"] * (rng.random() < 0.9)
        body["messages"] = [{"role": role, "content": rng.choice(_TEXTS)} for role in roles]
    if "prompt" in body:
        body["prompt"] = rng.choice(_TEXTS)
    if "history" in body:
        body["history"] = [[rng.choice(_TEXTS), rng.choice(_TEXTS)]]
    if "model" in body:
        body["model"] = rng.choice(["tiny", "p4", None])
    if "path" in body:
        body["path"] = rng.choice(["p4", "p4/", "../p4", "."])
    for name in ("max_tokens", "max_completion_tokens"):
        if isinstance(body.get(name), int) and rng.random() < 0.7:
            body[name] = rng.randint(1, 8)
    return body
