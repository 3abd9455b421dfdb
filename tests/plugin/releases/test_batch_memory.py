import numpy as np
import pytest
import torch

from skyvec.releases.batch_memory import SMALL_BYTES, BatchMemory

SHAPE = (4, SMALL_BYTES)

HOLD = {
    "the array": lambda array: array,
    "a view": lambda array: array[1:2, :3],
    "a tensor": torch.from_numpy,
    "a view of a tensor": lambda array: torch.from_numpy(array)[2:, 5],
    "an array of a tensor": lambda array: torch.from_numpy(array).numpy()[0],
}


def place(array):
    return array.__array_interface__["data"][0]


def empty(memory, shape=SHAPE, dtype=np.float32):
    (array,) = memory.empty((shape, np.dtype(dtype)))
    return array


@pytest.mark.parametrize("how", HOLD)
def test_memory_serves_again_only_once_nobody_holds_it(how):
    memory = BatchMemory()
    array = empty(memory)
    array[...] = 1
    first = place(array)
    held = HOLD[how](array)
    del array
    other = empty(memory)
    other[...] = 2
    assert place(other) != first
    assert (np.asarray(held) == 1).all()
    del held
    assert place(empty(memory)) == first


def test_arrays_of_one_piece_are_apart_and_are_freed_together():
    memory = BatchMemory()
    wanted = [(SHAPE, np.dtype("f4")), ((3, 5), np.dtype("?")), ((2, 2), np.dtype(">f8"))]
    arrays = memory.empty(*wanted)
    for value, (array, (shape, dtype)) in enumerate(zip(arrays, wanted, strict=True)):
        assert (array.shape, array.dtype) == (shape, dtype)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.flags.aligned
        array[...] = value
    assert [np.unique(array).tolist() for array in arrays] == [[0], [1], [2]]
    first = place(arrays[0])
    kept = arrays[1]
    del arrays, array
    assert place(memory.empty(*wanted)[0]) != first
    assert kept.all()
    del kept
    assert place(memory.empty(*wanted)[0]) == first


def test_an_array_outlives_the_memory_that_it_came_from():
    array = empty(BatchMemory(), dtype=np.int64)
    array[...] = 7
    empty(BatchMemory(), dtype=np.int64)[...] = 8
    assert (array == 7).all()


@pytest.mark.parametrize(("shape", "dtype"), [((3,), "f4"), ((0, 5), "f8"), ((9, 9999), object)])
def test_small_arrays_and_objects_are_plain(shape, dtype):
    array = empty(BatchMemory(), shape, dtype)
    assert array.shape == shape
    assert array.dtype == np.dtype(dtype)
    assert array.flags.owndata
