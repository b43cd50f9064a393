"""Local classifiers: what may be loaded, and how calls are answered."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from sluiceway.core.call import Call, Failure, FailureKind, Reply, Request, Usage
from sluiceway.core.catalog import Api, Model
from sluiceway.core.errors import InputError
from sluiceway.models.local import LocalEndpoint, load

joblib = pytest.importorskip("joblib")
skops_io = pytest.importorskip("skops.io")
text_features = pytest.importorskip("sklearn.feature_extraction.text")
linear = pytest.importorskip("sklearn.linear_model")
pipeline = pytest.importorskip("sklearn.pipeline")
preprocessing = pytest.importorskip("sklearn.preprocessing")

SCHEMA = {"type": "object", "properties": {"category": {"type": "string", "enum": ["card", "login"]}}}


@pytest.fixture(scope="module")
def trained() -> Any:
    texts = ["my card is lost", "card stolen", "I can't log in", "password and login"]
    made = pipeline.make_pipeline(text_features.TfidfVectorizer(), linear.LogisticRegression())
    return made.fit(texts, ["card", "card", "login", "login"])


def model(path: Path, **given: Any) -> Model:
    return Model(**{"name": "student", "api": Api.LOCAL, "file": str(path), **given})


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def call(text: str) -> Call:
    return Call(Model(name="student"), Request("s", "u", SCHEMA, "n", 9, text), 0, 9e9, "j")


@pytest.fixture
def file(tmp_path: Path, trained: Any) -> Path:
    path = tmp_path / "student.skops"
    skops_io.dump(trained, path)
    return path


async def test_an_answer_has_the_schemas_property_the_whole_distribution_and_no_usage(file: Path) -> None:
    """The label of the highest probability; nothing is billed."""
    one = model(file)
    endpoint = LocalEndpoint(one, load(one))
    found = await endpoint.call(call("I lost my card"))
    assert isinstance(found, Reply)
    assert orjson.loads(found.text) == {"category": "card"}
    assert found.distribution is not None
    assert set(found.distribution) == {"card", "login"}
    assert sum(found.distribution.values()) == pytest.approx(1)
    assert found.usage == Usage()
    await endpoint.close()


@pytest.mark.parametrize("count", [3, 100])
async def test_calls_of_one_turn_are_predicted_together_and_each_gets_its_own_answer(file: Path, count: int) -> None:
    """One predict_proba for all of them, in the loop or in the thread."""
    batches: list[int] = []

    class Counting:
        def __init__(self, inner: Any) -> None:
            self._inner, self.classes_ = inner, inner.classes_

        def predict_proba(self, texts: Any) -> Any:
            batches.append(len(texts))
            return self._inner.predict_proba(texts)

    one = model(file)
    endpoint = LocalEndpoint(one, Counting(load(one)))
    texts = ["my card" if number % 2 else "login please" for number in range(count)]
    replies = await asyncio.gather(*(endpoint.call(call(text)) for text in texts))
    labels = [orjson.loads(found.text)["category"] for found in replies if isinstance(found, Reply)]
    assert labels == ["card" if number % 2 else "login" for number in range(count)]
    assert batches == [count]
    await endpoint.close()


async def test_a_text_that_the_classifier_cannot_take_hurts_no_neighbour(file: Path) -> None:
    """It alone is a failure."""

    class Picky:
        classes_: Sequence[Any] = ("card", "login")

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def predict_proba(self, texts: Any) -> Any:
            if "bad" in texts:
                raise ValueError("bad text")
            return self._inner.predict_proba(texts)

    one = model(file)
    endpoint = LocalEndpoint(one, Picky(load(one)))
    good, bad = await asyncio.gather(endpoint.call(call("card")), endpoint.call(call("bad")))
    assert isinstance(good, Reply)
    assert bad == Failure(FailureKind.INVALID, "local_model")
    await endpoint.close()


async def test_a_fault_in_the_classifier_reaches_its_callers_and_leaves_none_waiting(file: Path) -> None:
    """An exception that no text explains is a Bug; the next call is predicted afresh."""

    class Broken:
        classes_: Sequence[Any] = ("card", "login")
        broken = True

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def predict_proba(self, texts: Any) -> Any:
            if self.broken:
                raise SyntaxError("ours")
            return self._inner.predict_proba(texts)

    one = model(file)
    broken = Broken(load(one))
    endpoint = LocalEndpoint(one, broken)
    results = await asyncio.gather(*(endpoint.call(call("card")) for _ in range(3)), return_exceptions=True)
    assert [type(found) for found in results] == [SyntaxError] * 3
    broken.broken = False
    assert isinstance(await endpoint.call(call("card")), Reply)
    await endpoint.close()


def test_a_file_that_runs_code_is_loaded_only_by_its_digest(tmp_path: Path, trained: Any) -> None:
    """The error gives the digest to write, and says why."""
    path = tmp_path / "student.joblib"
    joblib.dump(trained, path)
    with pytest.raises(InputError, match=f"runs code.*sha256: {digest(path)}"):
        load(model(path))
    with pytest.raises(InputError, match="not the policy's"):
        load(model(path, sha256="0" * 64))
    assert list(load(model(path, sha256=digest(path))).classes_) == ["card", "login"]


def test_a_pickle_without_its_digest_never_runs(tmp_path: Path) -> None:
    """Not even as far as its first opcode."""

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError):
        load(model(path))
    assert not (tmp_path / "ran").exists()


def test_a_skops_file_with_a_type_outside_the_list_is_refused_by_that_name(tmp_path: Path) -> None:
    """Functions of the standard library, for one."""
    path = tmp_path / "evil.skops"
    vectorizer = text_features.TfidfVectorizer(tokenizer=os.path.basename, token_pattern=None)
    made = pipeline.make_pipeline(vectorizer, linear.LogisticRegression()).fit(["a b", "c d"], ["x", "y"])
    skops_io.dump(made, path)
    with pytest.raises(InputError, match=r"basename, not trusted"):
        load(model(path))


@pytest.mark.parametrize(
    ("name", "content"), [("a.skops", b"no zip"), ("a.joblib", b"no pickle"), ("a.pkl", b""), ("a.onnx", b"x")]
)
def test_a_broken_file_is_an_input_error_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    """Never a traceback."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=name):
        load(model(path, sha256=digest(path)))
    with pytest.raises(InputError, match="can't be read"):
        load(model(tmp_path / "missing.skops"))


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    """It must give probabilities."""
    path = tmp_path / "scaler.skops"
    skops_io.dump(preprocessing.StandardScaler().fit([[1.0]]), path)
    with pytest.raises(InputError, match="predict_proba"):
        load(model(path))


def test_a_missing_package_is_named_with_its_extra(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip install 'sluiceway[local]'."""
    monkeypatch.setitem(sys.modules, "skops.io", None)
    with pytest.raises(InputError, match=r"pip install 'sluiceway\[local\]'"):
        load(model(file))
