"""Tasks of GLUE and SuperGLUE that are classification or regression, by name: `data: {benchmark: glue/rte}`.

The test splits of both have no public labels. The published validation split is the test split of the study, which the
search never sees, and a tenth of train is set aside to search by.

Left out, as they are no classification of a text or a pair: SuperGLUE's COPA, MultiRC, ReCoRD, WiC and WSC.

Sources: GLUE (Wang et al., 2018), SuperGLUE (Wang et al., 2019); columns as in `nyu-mll/glue` and `aps/super_glue`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GLUE, SUPERGLUE = "nyu-mll/glue", "aps/super_glue"


@dataclass(frozen=True)
class Benchmark:
    """A published data set.

    Attributes:
        dataset: Its name on the Hub.
        subset: Its configuration there.
        texts: The column of the text, or the columns of the two texts in the order of the publication.
        metric: The metric that the benchmark reports, or the one of two that does not depend on the order of labels.
        test: The split that the study's test split is.
    """

    dataset: str
    subset: str
    texts: tuple[str, ...]
    metric: str = "accuracy"
    test: str = "validation"

    def keys(self) -> Mapping[str, Any]:
        """Return the keys of `data:` that it stands for."""
        pair = {"text_pair": self.texts[1]} if len(self.texts) > 1 else {}
        return {"dataset": self.dataset, "subset": self.subset, "text": self.texts[0], **pair, "test": self.test}


SENTENCES = ("sentence1", "sentence2")

BENCHMARKS: dict[str, Benchmark] = {
    "glue/cola": Benchmark(GLUE, "cola", ("sentence",), "matthews"),
    "glue/mnli": Benchmark(GLUE, "mnli", ("premise", "hypothesis"), test="validation_matched"),
    "glue/mrpc": Benchmark(GLUE, "mrpc", SENTENCES),
    "glue/qnli": Benchmark(GLUE, "qnli", ("question", "sentence")),
    "glue/qqp": Benchmark(GLUE, "qqp", ("question1", "question2")),
    "glue/rte": Benchmark(GLUE, "rte", SENTENCES),
    "glue/sst2": Benchmark(GLUE, "sst2", ("sentence",)),
    "glue/stsb": Benchmark(GLUE, "stsb", SENTENCES, "spearman"),
    "glue/wnli": Benchmark(GLUE, "wnli", SENTENCES),
    "superglue/boolq": Benchmark(SUPERGLUE, "boolq", ("question", "passage")),
    "superglue/cb": Benchmark(SUPERGLUE, "cb", ("premise", "hypothesis")),
    "superglue/rte": Benchmark(SUPERGLUE, "rte", ("premise", "hypothesis")),
}
