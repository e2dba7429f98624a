"""Columns of many texts, and arrays that may be in files, against the plain lists that they are."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from xfer.core import long_array, text_columns
from xfer.core.text_columns import Made, Picked, Texts, in_order, repeated
from xfer.data.leakage import same_bytes

WORDS = ["", "a", "über/ß.jpg", "\udcff.jpg", "日本", *(f"train/{i}.png" for i in range(3000))]


def test_texts_are_what_they_were_in_any_form_of_asking() -> None:
    texts = Texts(iter(WORDS))
    assert len(texts) == len(WORDS) and list(texts) == WORDS
    assert texts == WORDS and texts == tuple(WORDS) and texts != WORDS[1:] and texts != WORDS[0]
    assert [texts[i] for i in (2, -1, np.int64(3))] == [WORDS[2], WORDS[-1], WORDS[3]]
    assert texts[5:9] == WORDS[5:9] and texts[::-1][:2] == WORDS[:-3:-1]
    assert pickle.loads(pickle.dumps(texts)) == texts and Texts([]) == ()
    with pytest.raises(IndexError):
        texts[len(WORDS)]


@pytest.mark.parametrize("at_once", [1, 700, 1 << 16])
def test_texts_in_order_are_those_of_one_sorted_list(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(text_columns, "_SORTED", at_once)
    some = [*WORDS[:7], *WORDS[-2000:], "\ue000", "a/b", "a-b/c", "a"]
    assert in_order(iter(some)) == sorted(some) and in_order(some[::-1]) == sorted(some)
    assert in_order([]) == ()


def test_what_is_picked_is_no_copy_and_picked_again_is_the_same() -> None:
    at = np.array([4, 1, 1, 7])
    picked = Picked(Texts(WORDS), at)
    assert picked == [WORDS[i] for i in at] == list(picked) and len(picked) == 4
    again = Picked(picked, np.array([3, 0]))
    assert again == [WORDS[7], WORDS[4]] and not isinstance(again.source, Picked)
    assert picked[1:3] == [WORDS[1]] * 2 and repeated(WORDS[:2], 2) == WORDS[:2] * 2
    squares = Made(5, lambda i: i * i)
    assert squares == [0, 1, 4, 9, 16] and squares[-1] == 16 and squares[1:3] == (1, 4)
    assert Made(0, lambda i: i) == [] and list(Picked(squares, np.array([2]))) == [4]


def test_images_of_the_same_bytes_are_those_that_a_dictionary_has() -> None:
    drawn = np.random.default_rng(0)
    digests = drawn.integers(0, 256, (150, 32), np.uint8)[drawn.integers(0, 150, 900)]
    among = drawn.random(900) < 0.7
    first: dict[bytes, int] = {}
    for i in np.flatnonzero(among).tolist():
        first.setdefault(digests[i].tobytes(), i)
    expected = [first.get(row.tobytes(), -1) for row in digests]
    assert same_bytes(digests, among).tolist() == expected
    assert not len(same_bytes(digests[:0], among[:0]))


def test_a_long_array_is_mapped_and_a_disk_without_room_makes_it_plain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(long_array, "LONG", 1 << 10)
    array = long_array.zeros((200, 3), np.float32)
    array[7] = 5
    assert isinstance(array, np.memmap) and array.sum() == 15
    assert not isinstance(long_array.zeros((2, 3), np.float32), np.memmap)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    plain = long_array.zeros((200, 3), np.float32)
    assert not isinstance(plain, np.memmap) and not plain.any()
