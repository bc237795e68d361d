"""Every example of the OpenAPI document is sent to a real server, and answered as documented.

A request's example is found again, by its name, among the examples of one response: its status and
media type are what the server must give, in the documented schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from generate_docs import OPENAPI
from jsonschema import Draft202012Validator

from support.fixtures_vim import DATA
from support.serving import running
from vim_embed.engines.torch_engine import EngineOptions, TorchEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed.weights.catalogue import CatalogueEntry

Operation = dict[str, Any]
DOCUMENT: dict[str, Any] = json.loads(OPENAPI.read_text())
OPERATIONS: dict[str, Operation] = {
    f"{method.upper()} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
OURS = [name for name in OPERATIONS if "/v2" not in name]  # that protocol has its own error shape


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    micro = CatalogueEntry(name="vim-tiny", kind="vim", path=DATA / "vim_micro.pth")
    engine = TorchEngine([micro], EngineOptions(device=torch.device("cpu")))
    with (
        running(create_app(Settings(), engine)) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def request_examples(operation: Operation) -> dict[str, dict[str, Any]]:
    """Example name -> what to send: `params`, and `body` with its media type."""
    found: dict[str, dict[str, Any]] = {}
    for parameter in operation.get("parameters", []):
        for name, example in parameter.get("examples", {}).items():
            sent = found.setdefault(name, {"params": {}})
            sent["params"][parameter["name"]] = example["value"]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        for name, example in content.get("examples", {}).items():
            found.setdefault(name, {"params": {}})["body"] = (kind, example)
    return found


def answer_examples(operation: Operation) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(example name, status, media type, example) of every answer."""
    for status, answer in operation["responses"].items():
        for kind, content in answer.get("content", {}).items():
            for name, example in content.get("examples", {}).items():
                yield name, status, kind, example


CASES = [(name, example) for name in OPERATIONS for example in request_examples(OPERATIONS[name])]


def send(http: httpx.Client, name: str, sent: dict[str, Any]) -> httpx.Response:
    method, path = name.split(" ")
    query = dict(sent["params"])
    for key in list(query):
        if f"{{{key}}}" in path:
            path = path.replace(f"{{{key}}}", str(query.pop(key)))
    if "body" not in sent:
        return http.request(method, path, params=query)
    kind, example = sent["body"]
    if "externalValue" in example:
        content = http.get(example["externalValue"]).raise_for_status().content
    else:
        content = json.dumps(example["value"]).encode()
    return http.request(method, path, params=query, content=content, headers={"Content-Type": kind})


def check(operation: Operation, status: str, kind: str, answer: object) -> None:
    """Raises where an answer does not have the documented schema."""
    schema = operation["responses"][status]["content"][kind]["schema"]
    rooted = {**schema, "components": DOCUMENT["components"]}
    Draft202012Validator(rooted).validate(answer)


@pytest.mark.parametrize(("name", "example"), CASES)
def test_examples_are_answered_as_documented(http: httpx.Client, name: str, example: str) -> None:
    operation = OPERATIONS[name]
    documented = [(s, k) for n, s, k, _ in answer_examples(operation) if n == example]
    assert len(documented) == 1, f"no single response has an example {example!r}"
    answer = send(http, name, request_examples(operation)[example])
    kind = answer.headers["content-type"].partition(";")[0]
    assert (str(answer.status_code), kind) == documented[0], answer.text[:300]
    if kind == "application/json":
        check(operation, str(answer.status_code), kind, answer.json())
    if answer.status_code >= 400:
        assert answer.json()["error"]["code"] == example


@pytest.mark.parametrize(
    "name", [n for n in OPERATIONS if n.startswith("GET") and "{" not in n and "/v2" not in n]
)
def test_routes_without_parameters_answer_as_documented(http: httpx.Client, name: str) -> None:
    answer = send(http, name, {"params": {}})
    assert answer.status_code == 200
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in OPERATIONS[name]["responses"]["200"]["content"]
    if kind == "application/json":
        check(OPERATIONS[name], "200", kind, answer.json())


@pytest.mark.parametrize("name", OPERATIONS)
def test_examples_of_answers_have_their_schema(name: str) -> None:
    for _, status, kind, example in answer_examples(OPERATIONS[name]):
        if "value" in example and kind == "application/json":
            check(OPERATIONS[name], status, kind, example["value"])


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_route_is_described(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation["summary"]
    assert "200" in operation["responses"]


@pytest.mark.parametrize("name", OURS)
def test_every_failure_has_the_one_shape(name: str) -> None:
    failures = {s: r for s, r in OPERATIONS[name]["responses"].items() if s >= "400"}
    assert "500" in failures
    for answer in failures.values():
        schema = answer["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}
    assert "HTTPValidationError" not in json.dumps(OPERATIONS[name])


@pytest.mark.parametrize("name", OURS)
def test_every_route_with_parameters_has_examples(name: str) -> None:
    operation = OPERATIONS[name]
    required = any(p["required"] for p in operation.get("parameters", []))
    assert request_examples(operation) or not (required or "requestBody" in operation)


def test_every_embed_error_of_the_table_is_documented() -> None:
    from vim_embed.errors import ERRORS, Conflict, Forbidden, MethodNotAllowed, NotFound

    named = {n for n, s, _, _ in answer_examples(OPERATIONS["POST /embed"]) if s >= "400"}
    assert named == {
        e.code for e in ERRORS if e not in (NotFound, MethodNotAllowed, Forbidden, Conflict)
    }


def test_the_browsable_form_works_offline(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.status_code == 200
    sources = [part.split('"')[0] for part in page.text.replace("'", '"').split('src="')[1:]]
    styles = [
        part.split('"')[0]
        for part in page.text.split('href="')[1:]
        if part.split('"')[0].endswith(".css")
    ]
    assert sources
    assert styles
    for address in sources + styles:
        assert address.startswith("/"), f"{address} is elsewhere"
        assert http.get(address).status_code == 200, address
