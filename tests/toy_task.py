"""A toy task of sums for the tests of training."""

from plop_nb.experiments import Task

FEW = {"r": 2, "steps": 3, "batch_size": 4, "logging_steps": 1, "lr": 1e-2}


def digits(n, start=0):
    """Examples of adding one, to the numbers from `start` on."""
    numbers = range(start, start + n)
    return [{"prompt": f"{i} plus 1\nAnswer:", "completion": f" {i + 1}"} for i in numbers]


def is_completion(text, example):
    """A check that takes the completion alone."""
    return text == example["completion"]


def toy_task():
    """24 examples to train on, 6 to validate, 7 to test."""
    return Task("toy", digits(24), digits(6, 100), digits(7, 200), is_completion, new_tokens=5)
