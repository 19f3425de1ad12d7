"""What an experiment learns from: the same tuples for all models, and splits that are checked before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property, lru_cache

from msdask.data.areas import AreaSet
from msdask.data.contents import contents_hash
from msdask.data.dataset import PatchDataset
from msdask.data.linked import LinkedSet
from msdask.data.patches import StoredPatches
from msdask.data.tuples import TupleDataset
from msdask.errors import MsdaskError, SpecError
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore
from msdask.training.classify_source import ClassifySource
from msdask.training.experiments.config import ExperimentConfig
from msdask.training.experiments.rows import Row
from msdask.training.segment_source import SegmentSource
from msdask.training.splits import Split, splits

__all__ = ["ExperimentData", "data_of"]

DEFAULT_REPEATS = 5


class ExperimentData:
    """The tuples that all magnifications of an experiment have in common, and the splits.

    A model with one magnification, or with some, gets the same tuples as one with all, and the same label of the whole:
    otherwise their scores would be of different patches.

    Parameters
    ----------
    config : of the experiment

    Attributes
    ----------
    source : the tuples at all magnifications
    classes : names

    Raises
    ------
    SpecError
        The store has not what is asked for; see `ClassifySource`.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config
        self._areas: dict[tuple[float, ...], AreaSet] = {}
        self.source: ClassifySource | SegmentSource
        if config.task == "segment":
            self.source = SegmentSource(
                config.store, magnifications=config.scales, name=config.patch_set, classes=config.class_count
            )
            self.classes = config.classes if isinstance(config.classes, tuple) else self.source.names
            return
        is_taught = "n+1" in config.losses and any(len(s) > 1 for s in config.magnifications)
        self.source = ClassifySource(
            config.store,
            config.relation,
            magnifications=config.scales,
            losses="n+1" if is_taught else "one",
            name=config.patch_set,
            classes=config.class_count,
            leave_out=config.pooled_set if config.relation == "upper_region" else (),
        )
        names = config.classes if isinstance(config.classes, tuple) else range(self.source.classes)
        self.classes = tuple(map(str, names))

    @cached_property
    def splits(self) -> list[Split]:
        """The splits, each with every class in every part.

        Raises
        ------
        SpecError
            There are more or fewer than `repeats`, a part is empty, lacks a class, or shares a slide or patient.
        """
        config, source = self.config, self.source
        if config.lists is not None:
            found = splits(source.slides, lists=config.lists, patients=source.patients)
            if config.repeats is not None and len(found) != config.repeats:
                raise SpecError(
                    f"lists '{config.lists}': {len(found)} splits, and repeats={config.repeats}: leave it out"
                )
        elif config.ratios is not None:
            most = dict(zip(source.slides, source.counts.argmax(1).tolist(), strict=True))
            found = splits(
                source.slides,
                ratios=config.ratios,
                repeats=config.repeats or DEFAULT_REPEATS,
                seed=config.seed,
                stratify=most,
                patients=source.patients,
            )
        else:
            found = [source.split()]
        for split in found:
            if not split.test:
                raise SpecError(f"split {split.repeat}: no slide is for testing: models are judged on these")
            source.check(split)
        if len(found) == 1:
            warnings.warn(
                "one split: whether models differ beyond chance cannot be tested; take ratios and repeats = 5",
                UserWarning,
                stacklevel=2,
            )
        return found

    @cached_property
    def contents(self) -> str:
        """Hash of what is stored in all sets that are read."""
        patches = self.source.patches
        sets = [*(patches.sets if isinstance(patches, LinkedSet) else [patches])]
        sets += [self._named(name) for name in self.config.pooled_set]
        stored = [StoredPatches(one) for one in sets]
        used = [
            (i, slide_id) for i, one in enumerate(sets) for slide_id in self.source.slides if slide_id in one.slides
        ]
        return contents_hash(stored, used)

    def _named(self, name: str) -> PatchSet:
        store = PatchStore(self.config.store)
        if name not in store:
            raise SpecError(f"pooled_set='{name}': '{self.config.store}' has no such set; it has {sorted(store)}")
        return store[name]

    def drawn(self, split: Split) -> tuple[int, int]:
        """How many patients (or slides, where no patient is known) a split has for testing and for training."""
        of = self.source.patients
        count = [len({of.get(s, s) for s in slides}) for slides in (split.test, split.train)]
        return count[0], count[1]

    def dataset(self, slides: Sequence[str], row: Row, *, is_judged: bool = False) -> PatchDataset:
        """The tuples of slides as a row's model sees them; to be judged, a segmentation has the finest target first."""
        if isinstance(self.source, SegmentSource):
            finest = self.config.scales[:1] if is_judged else ()
            return self.source.dataset(slides, magnifications=(*finest, *row.magnifications))
        if row.kind == "pooled":
            return TupleDataset(self.areas(row), slides=slides, labels_of_each=row.losses == "n+1")
        return TupleDataset(
            self.source.patches,
            slides=slides,
            magnifications=row.magnifications,
            labels_of_each=row.losses == "n+1",
        )

    def areas(self, row: Row) -> AreaSet:
        """The contexts of a row as fine patches; found once."""
        if row.magnifications not in self._areas:
            named = [self._named(name) for name in self.config.pooled_set]
            fine = next((one for one in named if row.magnifications[0] in one.spec.magnifications), None)
            self._areas[row.magnifications] = AreaSet(self.source.patches, row.magnifications, fine=fine)
        return self._areas[row.magnifications]


@lru_cache(maxsize=1)
def data_of(config: ExperimentConfig, contents: str) -> ExperimentData:
    """The data of an experiment, opened once in a process that does several of its runs.

    Raises
    ------
    MsdaskError
        The store has not the contents any more that it had when the experiment began.
    """
    data = ExperimentData(config)
    if data.contents != contents:
        raise MsdaskError(
            f"'{config.store}' has changed since the experiment began, or another store lies at that path here: "
            "do not extract into it meanwhile, and begin again in another output folder"
        )
    return data
