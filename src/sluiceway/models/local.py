"""A scikit-learn classifier from a file, answering in this process: the cheapest rung, and a score for other rungs.

Two kinds of file. `.skops` is data: it is loaded through skops, which builds only types it is told to trust. `.joblib`
and `.pkl` run code when they are loaded, so they are taken only when their SHA-256 stands in the policy.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import io
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import orjson

from sluiceway.core.call import Call, Failure, FailureKind, Reply, Usage
from sluiceway.core.catalog import Model
from sluiceway.core.errors import InputError
from sluiceway.models import schema

# Types that skops does not trust by itself but that a calibrated classifier holds; building one does nothing. (A
# decision tree's is left out: compiled code follows the indices that the file holds.) Others are refused by name.
_TRUSTED = frozenset(
    f"sklearn.calibration.{name}" for name in ("_CalibratedClassifier", "_SigmoidCalibration", "_TemperatureScaling")
)
# What loading a broken file, or predicting a text that a classifier can't take, is known to raise.
_BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError),
    *(RuntimeError, TypeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile),
)
# Texts. A call of TF-IDF and a linear model over 77 labels takes 1.0 ms for 1 to 16 texts, 1.7 ms for 64 and 4.2 ms for
# 256: small batches are not worth a thread, large ones would hold up the loop.
_INLINE = 16


class Classifier(Protocol):
    """What is used of scikit-learn."""

    classes_: Sequence[Any]

    def predict_proba(self, texts: Sequence[str]) -> Any: ...


def load(model: Model) -> Classifier:
    """The classifier in `model.file`. Raises InputError: no such file, another digest, a type that is not trusted."""
    path = Path(model.file or "")
    where = f"model {model.name!r}"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError("classifier", f"{where}: {path} can't be read ({error.strerror}). Mend: name a file") from None
    digest = hashlib.sha256(raw).hexdigest()
    if model.sha256 is not None and model.sha256.lower() != digest:
        raise InputError("classifier", f"{where}: {path} has SHA-256 {digest}, not the policy's. Mend: find out why")
    match path.suffix:
        case ".skops":
            found = _from_skops(raw, path, where)
        case ".joblib" | ".pkl":
            if model.sha256 is None:
                mend = f"if you made the file, write sha256: {digest}; or save it as .skops"
                raise InputError("classifier", f"{where}: loading {path} runs code that the file holds. Mend: {mend}")
            found = _from_pickle(raw, path, where)
        case _:
            raise InputError("classifier", f"{where}: {path} is no classifier. Mend: a .skops or .joblib file")
    if not hasattr(found, "predict_proba") or not hasattr(found, "classes_"):
        mend = "train one that takes texts and gives probabilities, e.g. TfidfVectorizer with LogisticRegression"
        raise InputError("classifier", f"{where}: {path} holds no classifier with predict_proba. Mend: {mend}")
    classifier: Classifier = found
    return classifier


def _from_skops(raw: bytes, path: Path, where: str) -> Any:
    reader = _extra("skops.io", where)
    try:
        unknown = sorted(set(reader.get_untrusted_types(data=raw)) - _TRUSTED)
        if unknown:
            mend = "train with plain scikit-learn types only"
            raise InputError("classifier", f"{where}: {path} holds {', '.join(unknown)}, not trusted. Mend: {mend}")
        return reader.loads(raw, trusted=sorted(_TRUSTED))
    except _BROKEN as error:
        kind = type(error).__name__
        raise InputError(
            "classifier", f"{where}: {path} can't be loaded ({kind}). Mend: save it with skops.io.dump"
        ) from None


def _from_pickle(raw: bytes, path: Path, where: str) -> Any:
    joblib = _extra("joblib", where)
    _extra("sklearn", where)
    try:
        return joblib.load(io.BytesIO(raw))
    except _BROKEN as error:
        kind = type(error).__name__
        raise InputError(
            "classifier", f"{where}: {path} can't be loaded ({kind}). Mend: save it with joblib.dump"
        ) from None


def _extra(module: str, where: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        mend = "pip install 'sluiceway[local]'"
        raise InputError(
            "classifier", f"{where}: a local model needs {module.partition('.')[0]}. Mend: {mend}"
        ) from None


class LocalEndpoint:
    """Answers calls to one local model. Calls of one turn of the loop, and those that come while a batch is being
    predicted, are predicted together."""

    def __init__(self, model: Model, classifier: Classifier) -> None:
        self._classifier = classifier
        self._labels = [str(label) for label in classifier.classes_]
        self._served = model.model or model.name
        self._waiting: list[tuple[str, asyncio.Future[Sequence[float] | None]]] = []
        self._predicting: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"local-{model.name}")
        self.origin = f"local:{Path(model.file or '').name}"

    async def call(self, call: Call) -> Reply | Failure:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Sequence[float] | None] = loop.create_future()
        self._waiting.append((call.request.text, done))
        if self._predicting is None:
            self._predicting = loop.create_task(self._predict())
        row = await done
        if row is None:
            return Failure(FailureKind.INVALID, "local_model")
        distribution = dict(zip(self._labels, row, strict=True))
        best = max(distribution, key=distribution.__getitem__)
        text = _answer(best, call.request.schema)
        return Reply(text=text, usage=Usage(), distribution=distribution, model_served=self._served)

    async def _predict(self) -> None:
        batch: list[tuple[str, asyncio.Future[Sequence[float] | None]]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                rows = await self._rows_of([text for text, _ in batch])
                for (_, done), row in zip(batch, rows, strict=True):
                    if not done.done():  # its caller may have given up
                        done.set_result(row)
        except Exception as error:  # noqa: BLE001 - the top of a task: its callers raise it, as the Bug that it is
            for _, done in batch + self._waiting:
                if not done.done():
                    done.set_exception(error)
            self._waiting = []
        finally:
            self._predicting = None

    async def _rows_of(self, texts: list[str]) -> Sequence[Sequence[float] | None]:
        if len(texts) <= _INLINE:
            return self._rows(texts)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._rows, texts)

    def _rows(self, texts: list[str]) -> Sequence[Sequence[float] | None]:
        try:
            rows: Sequence[Sequence[float]] = self._classifier.predict_proba(texts).tolist()
        except _BROKEN:
            # One text that the classifier can't take must not hurt its neighbours.
            return [None] if len(texts) == 1 else [self._rows([text])[0] for text in texts]
        return rows

    async def close(self) -> None:
        if self._predicting is not None:
            self._predicting.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)


def _answer(label: str, wanted: Mapping[str, Any] | None) -> str:
    only = schema.only_property(wanted)
    name = only[0] if only else "label"
    return orjson.dumps({name: label}).decode()
