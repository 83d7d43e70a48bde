"""The work behind the paths of the HTTP service: decoding, the queue, the guard, and the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.core.errors import ArgumentError
from fastadv.data.alignment import center_crop
from fastadv.data.images import ImageBudget, decode_image, to_tensor
from fastadv.detection.guard import Guard
from fastadv.detection.microbatch import Closed, MicroBatcher
from fastadv.detection.service_config import ServiceConfig
from fastadv.detection.service_metrics import Metrics
from fastadv.detection.uploads import Body, Upload, busy, images_of

_DECODERS = 2
_FAILURES = 3  # passes in a row that fail before the process counts as broken


class Row(NamedTuple):
    """The verdict on one image, on the CPU."""

    flagged: bool
    score: float
    p_value: float | None
    prediction: tuple[int, float] | None
    embedding: Tensor


class Service:
    """One guard with its queue and its metrics."""

    def __init__(self, guard: Guard, config: ServiceConfig, classes: Sequence[str] | None = None) -> None:
        """Prepare; nothing runs before :meth:`start`.

        Raises:
            ValueError: there are classes, but not one for each logit.
        """
        logits = getattr(guard.model.head, "out_features", 0)
        if classes is not None and len(classes) != logits:
            raise ArgumentError(
                f"classes: expected {logits} names, one for each logit of the model, got {len(classes)}"
            )
        self.guard, self.config, self.size = guard, config, guard.model.input_size
        self.ready = False
        self.open = self._decoding = 0
        self.problem: BaseException | None = None
        self.on_problem: Callable[[], None] = lambda: None
        self._failed = 0
        self._pace = 0.0  # seconds of a pass for each of its images, of the last passes
        self._batcher: MicroBatcher[tuple[NDArray, str | None], Row] = MicroBatcher(
            self._judge, max_batch=config.max_batch, max_wait=config.max_wait, max_queue=config.max_queue
        )
        self.metrics = Metrics(lambda: self.waiting, guard.detector.thresholds, config.drift_window, lambda: self.open)
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="fastadv-decode")
        self._warming: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether requests are being answered, or will be soon."""
        return self._batcher.alive and self.problem is None and self._failed < _FAILURES

    @property
    def waiting(self) -> int:
        """Images that are being decoded, or wait for a forward pass."""
        return self._decoding + self._batcher.waiting

    def start(self) -> None:
        """Start the threads and the warm-up, after which the service is ready."""
        self._batcher.start()
        self._warming = asyncio.get_running_loop().create_task(self._warm_up())

    async def close(self) -> None:
        """Answer the open requests, then stop."""
        self.ready = False
        if self._warming is not None:
            await self._warming
        await self._batcher.close()
        await asyncio.to_thread(self._decoders.shutdown)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request as being answered, within a ``with`` block.

        Raises:
            Refused: as many requests as allowed are being answered already.
        """
        self.check_open()
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def check_open(self) -> None:
        """Refuse a request that cannot be answered now.

        Raises:
            Refused: the service is not ready, or as many requests or images as allowed are being answered already.
        """
        if not self.ready:
            raise busy("not_ready", "warming up, or stopping")
        if self.open >= self.config.max_queue:
            raise busy("open_requests", f"{self.config.max_queue} requests are open already")
        self._check_queue(1)

    def _check_queue(self, count: int) -> None:
        """Refuse images for which the queue has no room, or that would be answered too late."""
        waiting, most, seconds = self.waiting, self.config.max_queue, self.config.timeout / 2
        if waiting + count > most:
            raise busy("queued_images", f"{waiting} images are waiting; at most {most} may")
        if waiting and (waiting + count) * self._pace > seconds:
            raise busy("queued_images", f"{waiting} images are waiting, which take more than {seconds:g} s")

    async def judge(self, body: Body, claimed: str | None = None) -> list[tuple[str | None, Row]]:
        """The name of each image of a body, and the verdict on it; all of them claim to show one class, or none.

        Raises:
            ImageError: one of them is not an accepted image, or together they exceed a limit.
            HTTPException: as :func:`images_of`, or the queue is full or closed.
        """
        loop, limits = asyncio.get_running_loop(), self.config
        files = await loop.run_in_executor(self._decoders, images_of, body, limits.max_images)
        count = len(files)
        self._check_queue(count)
        budget = ImageBudget(pixels=limits.max_request_pixels, parts=limits.max_parts)
        names = [name for name, _ in files]
        jobs = [loop.run_in_executor(self._decoders, self._decode, file, budget) for file in files]
        del body, files  # an exception keeps this frame
        self._decoding += count
        try:
            crops = await asyncio.gather(*jobs)
        finally:
            self._decoding -= count
            while jobs:  # where one image is refused, nobody waits for the others
                jobs.pop().cancel()
        try:
            rows = await self._batcher.submit([(crop, claimed) for crop in crops])
        except Closed as error:
            raise busy("not_ready", str(error)) from None
        return list(zip(names, rows, strict=True))

    async def _warm_up(self) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._decoders, self.guard.warm_up)
            self.ready = True
        except Exception as error:  # told by /healthz, and the server ends
            self.problem = error
            self.on_problem()

    def _decode(self, file: Upload, budget: ImageBudget) -> NDArray:
        name, data = file
        image = decode_image(data, name or "the body", most=self.config.max_pixels, budget=budget)
        return center_crop(image, self.size)[0]

    def _judge(self, faces: Sequence[tuple[NDArray, str | None]]) -> list[Row]:
        begin = time.perf_counter()
        crops, claimed = zip(*faces, strict=True)
        try:
            verdicts = self.guard(torch.stack([to_tensor(crop) for crop in crops]), claimed)
        except BaseException:
            self._failed += 1
            raise
        self._failed, seconds = 0, time.perf_counter() - begin
        self._pace = seconds / len(crops) if not self._pace else self._pace + (seconds / len(crops) - self._pace) / 4
        flagged, scores = verdicts.flagged.tolist(), verdicts.scores.tolist()
        embeddings, found = verdicts.embeddings.cpu(), verdicts.p_values
        p_values: list[float | None] = [None] * len(crops) if found is None else found.tolist()
        predicted: list[tuple[int, float] | None] = [None] * len(crops)
        if verdicts.logits is not None:
            chance, index = verdicts.logits.softmax(1).max(1)
            predicted = list(zip(index.tolist(), chance.tolist(), strict=True))
        self.metrics.judged(verdicts, time.perf_counter() - begin)
        return [Row(*row) for row in zip(flagged, scores, p_values, predicted, embeddings, strict=True)]
