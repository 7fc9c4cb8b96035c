"""What the words on the page mean, and where they come from."""

from __future__ import annotations

from typing import NamedTuple


class Word(NamedTuple):
    """A word, what it means and its source."""

    name: str
    meaning: str
    source: str


WORDS = (
    Word(
        "Cell",
        "One corruption at one severity, 1 to 5; clean images are a cell of their own, in no mean over cells.",
        "Hendrycks and Dietterich (2019), “Benchmarking Neural Network Robustness to Common Corruptions and "
        "Perturbations”, ICLR",
    ),
    Word(
        "Mean accuracy",
        "The share of images whose most probable class is right, top-1, in each corrupted cell; then the plain mean "
        "over these cells, each counting the same.",
        "Hendrycks and Dietterich (2019)",
    ),
    Word(
        "95 % interval",
        "2,000 times as many images are drawn anew with replacement, each with all its cells, seed 0; the interval is "
        "from the 2.5th to the 97.5th percentile. For a difference the same images are drawn for both methods. It "
        "tells how far other images of the same kind would move the number; not other seeds, training runs or data "
        "sets.",
        "Efron and Tibshirani (1993), “An Introduction to the Bootstrap”, chapter 13; Koehn (2004), “Statistical "
        "Significance Tests for Machine Translation Evaluation”, EMNLP",
    ),
    Word(
        "Points",
        "Percentage points: from 70 % to 75 % are 5 points.",
        "",
    ),
    Word(
        "mCE",
        "Mean corruption error: for each of the 15 corruptions the errors of its five severities together, divided by "
        "those of a baseline network; then the mean. 100 % is as wrong as the baseline, less is better.",
        "Hendrycks and Dietterich (2019), section 4.2",
    ),
    Word(
        "Relative mCE",
        "The same of what is lost against clean images: each error less the network's own clean error. 100 % loses as "
        "much as the baseline.",
        "Hendrycks and Dietterich (2019), section 4.2",
    ),
    Word(
        "Calibration error",
        "Expected calibration error: images are sorted by the probability of the predicted class into 15 bins of equal "
        "width; the mean distance between a bin's confidence and its accuracy, weighted by images. Of each cell, then "
        "the mean over cells.",
        "Guo et al. (2017), “On Calibration of Modern Neural Networks”, ICML",
    ),
    Word(
        "NLL",
        "Negative log likelihood of the true class in nats; the mean over images of each cell, then over cells.",
        "Guo et al. (2017)",
    ),
    Word(
        "Detected rightly",
        "The share of images whose most probable row of statistics is that of their own corruption, of all images "
        "that have such a row, clean ones too.",
        "dynbn-lightning; the idea of detecting is from Rezaei and Norouzzadeh (2023), “Dynamic Batch Norm Statistics "
        "Update for Natural Robustness”",
    ),
    Word(
        "Oracle",
        "The same method told the true corruption of every image: the ceiling of detection, no method to be used.",
        "",
    ),
    Word(
        "Time and memory",
        "Milliseconds per image and the most memory of a step, as multiples of the source's on the same stream in "
        "batches of the same size, of the same results and on the same hardware, as far as that is noted; a dash where "
        "the source was not measured there.",
        "",
    ),
)
