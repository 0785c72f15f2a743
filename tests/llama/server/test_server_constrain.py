"""JSON by a schema: whatever the model would rather say."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from serving import SHAPE, write_model

from llama import Llama, UsageError
from llama.batch import Batch
from llama.server.constrain import Grammars


def random_schema(rng: random.Random, depth: int = 3) -> dict:
    """A schema whose values are short."""
    kind = rng.choice(
        ["object", "array", "enum", "anyOf"] if depth else ["string", "integer", "boolean", "null", "number"]
    )
    if kind == "object":
        names = rng.sample(["name", "a b", "é", "x_1", '"', "\\", "日本"], rng.randint(0, 3))
        fields = {name: random_schema(rng, depth - 1) for name in names}
        required = rng.sample(names, rng.randint(0, len(names)))
        return {"type": kind, "properties": fields, "required": required, "additionalProperties": False}
    if kind == "array":
        return {
            "type": kind,
            "items": random_schema(rng, depth - 1),
            "minItems": rng.randint(0, 1),
            "maxItems": 2,
        }
    if kind == "enum":
        return {kind: rng.sample(["a", "ab", 1, -2.5, None, True, 'q"', "é"], 3)}
    if kind == "anyOf":
        return {kind: [random_schema(rng, depth - 1) for _ in range(2)]}
    limits = {
        "string": {"maxLength": 5},
        "integer": {"minimum": -5, "maximum": 500},
        "number": {"minimum": 0, "maximum": 9},
    }
    return {"type": kind} | limits.get(kind, {})


def holds(schema: dict, value: object) -> bool:
    """Whether a value is what random_schema asks for."""
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(holds(one, value) for one in schema["anyOf"])
    kind = schema["type"]
    if kind == "object":
        fields = schema["properties"]
        return (
            isinstance(value, dict)
            and set(schema["required"]) <= set(value) <= set(fields)
            and all(holds(fields[name], item) for name, item in value.items())
        )
    if kind == "array":
        count = isinstance(value, list) and schema["minItems"] <= len(value) <= 2
        return count and all(holds(schema["items"], item) for item in value)
    if kind == "string":
        return isinstance(value, str) and len(value) <= 5
    if kind in ("integer", "number"):
        types = int if kind == "integer" else int | float
        return isinstance(value, types) and schema["minimum"] <= value <= schema["maximum"]
    return value is None if kind == "null" else isinstance(value, bool)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = write_model(tmp_path_factory.mktemp("long"), replace(SHAPE, max_seq_len=2048))
    with Llama(path, threads=1) as llama:
        yield llama


def test_200_random_schemas_are_kept(llama):
    rng, grammars = random.Random(1), Grammars(llama)
    schemas = [random_schema(rng) for _ in range(200)]
    texts = [""] * len(schemas)
    with Batch(llama, sequences=8, threads=1) as batch:
        prompt = llama.encode("abc")
        requests = {
            batch.join(
                prompt, mask=grammars.masks(schema)[0], temperature=rng.choice([0.7, 1, 3]), seed=i + 1
            ): i
            for i, schema in enumerate(schemas)
        }
        while batch.busy:
            for event in batch.step():
                texts[requests[event.request]] += event.text
    ended = [texts[i] for request, i in requests.items() if request.finish == "stop_token"]
    assert len(ended) > 190  # a random model may write digits until the context is full
    for request, i in requests.items():
        assert request.error is None
        if request.finish == "stop_token":
            assert holds(schemas[i], json.loads(texts[i])), (schemas[i], texts[i])


@pytest.mark.parametrize(
    "schema", [{"type": "blah"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}, False], ids=str
)
def test_a_schema_that_can_not_be_kept_is_refused(llama, schema):
    with pytest.raises(UsageError):
        Grammars(llama).masks(schema)


def test_a_schema_that_is_too_deep_is_refused(llama):
    schema: dict = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(UsageError, match="json_schema: "):
        Grammars(llama).masks(schema)


def test_true_is_any_json(llama):
    assert Grammars(llama).masks(True)
