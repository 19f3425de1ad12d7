"""Batches onto a device and changed there, beside what the device is computing: the model finds them ready."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from msdask.data.device import finish
from msdask.data.scales import Batch

__all__ = ["Feed", "Sent"]


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch on its way to a device.

    Attributes
    ----------
    batch : on the device; not to be touched before `is_there`, on a GPU
    is_there : what happens on a GPU when its last change is made; None on a CPU, where nothing is under way
    """

    batch: Batch
    is_there: Any = None


class Feed:
    """The way onto a device: page-locked memory, and a stream of its own for the transfer and what `Augment` has left.

    Batches can be sent from any thread. What is sent on the stream runs while the model works on an earlier batch.

    Parameters
    ----------
    device : "cuda", "cuda:1" ..., or "cpu", where batches are only changed
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(self.device) if self.is_cuda else None
        self._one_at_a_time = threading.Lock()

    def send(self, batch: Batch) -> Sent:
        """Begin to send a batch, and to change it there."""
        if not self.is_cuda:
            return Sent(_changed({name: values.to(self.device) for name, values in batch.items()}, batch.get("draw")))
        pinned = {name: values if values.is_pinned() else values.pin_memory() for name, values in batch.items()}
        # One thread at a time, so that there is memory for what lies between of one batch only.
        with self._one_at_a_time, torch.cuda.stream(self._stream):
            there = {name: values.to(self.device, non_blocking=True) for name, values in pinned.items()}
            changed = _changed(there, batch.get("draw"))
            return Sent(changed, self._stream.record_event())

    def ready(self, sent: Sent) -> Batch:
        """The batch, for the stream of the thread that asks: on the device, what it computes next waits for it."""
        if self.is_cuda:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(sent.is_there)
            for values in sent.batch.values():
                values.record_stream(current)  # its memory is not given away before that stream is done with it
        return sent.batch

    def ahead(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches on the device, each sent before the one in front of it is given."""
        last: Sent | None = None
        for batch in batches:
            sent = self.send(batch)
            if last is not None:
                yield self.ready(last)
            last = sent
        if last is not None:
            yield self.ready(last)


def _changed(batch: Batch, draws: torch.Tensor | None) -> Batch:
    if draws is None:
        return batch
    return finish({name: values for name, values in batch.items() if name != "draw"}, draws)
