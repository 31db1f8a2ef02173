"""What may be passed as `data`: read right, or refused with what to pass instead."""

from collections import UserDict

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader, TensorDataset

import plop_nb as plop
from tests.conftest import TEXTS

FRAME = pd.DataFrame({"text": TEXTS, "label": range(4)}, index=[3, 1, 0, 2])
ROWS = Dataset.from_dict({"text": TEXTS, "input_ids": [[1, 2, 3]] * 4})
LOADER = DataLoader(TEXTS, batch_size=None)

READ = {
    "tuple": tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "dict values": dict(enumerate(TEXTS)).values(),
    "column of a frame": FRAME["text"],
    "arrow strings": FRAME["text"].astype("string"),
    "categories": FRAME["text"].astype("category"),
    "array": np.array(TEXTS),
    "array of objects": np.array(TEXTS, dtype=object),
    "column of a data set": ROWS["text"],
    "loader of texts": LOADER,
}


@pytest.mark.parametrize("kind", READ)
def test_texts_of_any_container_are_read(tiny_llama, byte_tokenizer, kind):
    data = READ[kind]() if kind == "generator" else READ[kind]
    expected = plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    found = plop.nfn_scores(tiny_llama, data, byte_tokenizer, progress=False)
    pd.testing.assert_frame_equal(found, expected)


def rows_of_tensors():
    return ROWS.select_columns("input_ids").with_format("torch")


REFUSED = {
    "frame": (FRAME, r"DataFrame with columns \['text', 'label'\]: pass the column .* data\['text"),
    "data set": (ROWS, r"Dataset with columns \['text', 'input_ids'\]: pass the column"),
    "stream": (ROWS.to_iterable_dataset(), "IterableDataset with columns .*: pass the column"),
    "splits": (DatasetDict(train=ROWS), r"DatasetDict with splits \['train'\]: pass a column of"),
    "rows": (list(ROWS), r"rows with texts under \['text'\]: pass .* \[row\['text'\] for row in"),
    "rows of tensors": (list(rows_of_tensors()), r"input_ids of shape \(3,\), expected batches"),
    "dict of texts": ({"a": "one", "b": "two"}, r"dict of texts: pass list\(data.values\(\)\)"),
    "one batch": (UserDict(input_ids=torch.ones(1, 2)), "data is one UserDict.*put it in a list"),
    "set": (set(TEXTS), r"data is a set, which has no order: pass sorted\(data\)"),
    "tensor": (torch.ones(2, 3).long(), "data is a tensor: put it in a batch"),
    "lists of texts": (DataLoader(TEXTS, batch_size=2), "data holds a list .* texts one by one"),
    "tuples of tensors": (
        DataLoader(TensorDataset(torch.ones(4, 3).long()), batch_size=2),
        "(?s)data holds a list .*name the tensors",
    ),
    "frame of numbers": (FRAME[["label"]].to_numpy(), "data holds a list .*expected texts"),
    "numbers": (FRAME["label"], r"texts\[0\] is int \(0\), expected str"),
    "missing texts": (pd.Series(["one", None]), r"texts\[1\] is .*, expected str"),
    "texts and batches": (["one", {"input_ids": torch.ones(1, 2)}], r"texts\[1\] is dict"),
    "batches and texts": ([{"input_ids": torch.ones(1, 2).long()}, "one"], "batches and a str"),
    "nothing": (FRAME["text"][:0], "data is empty: no texts to score"),
    "one number": (np.array(3), "data is one int, expected a list of texts"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_list_of_texts_or_batches_is_refused(tiny_llama, byte_tokenizer, kind):
    data, remedy = REFUSED[kind]
    with pytest.raises((TypeError, ValueError), match=remedy):
        plop.nfn_scores(tiny_llama, data, byte_tokenizer, progress=False)
    assert not tiny_llama.model._forward_pre_hooks


def test_batches_of_a_data_set_in_tensors_are_read(tiny_llama):
    ids = torch.arange(12).view(4, 3)
    tensors = Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")
    expected = plop.nfn_scores(tiny_llama, [{"input_ids": ids}], progress=False)
    for data in (tensors.iter(batch_size=2), DataLoader(tensors, batch_size=4)):
        found = plop.nfn_scores(tiny_llama, data, progress=False)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4)
