"""Takes batches of nepa on the stand-in for a GPU as a library does that has streams of its own,
and compares them with the CPU's. `python.rs` runs it: `python.py PART DATA`."""

import array
import ctypes
import sys
import threading

import nepa

SIDE, BATCH = 24, 2
CUDA = 2  # DLPack's kDLCUDA
BFLOAT = 4  # DLPack's kDLBfloat

driver = ctypes.CDLL("libcuda.so.1")


def call(function, *arguments):
    """A function of the driver, which must succeed."""
    status = getattr(driver, function)(*arguments)
    assert status == 0, f"{function} answers {status}"


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class DLManagedTensor(ctypes.Structure):
    _fields_ = [
        ("tensor", DLTensor),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
    ]


pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype = ctypes.c_void_p
pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
rename = ctypes.pythonapi.PyCapsule_SetName
rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
USED = b"used_dltensor"  # The capsule keeps its address.


class Tensor:
    """An array that was taken over, until `release`."""

    def __init__(self, exporter, stream):
        capsule = exporter.__dlpack__(stream=stream)
        self.address = pointer_of(capsule, b"dltensor")
        assert rename(capsule, USED) == 0
        self.managed = DLManagedTensor.from_address(self.address)
        tensor = self.managed.tensor
        self.shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
        self.device = (tensor.device_type, tensor.device_id)
        self.data = tensor.data
        self.num_bytes = tensor.bits // 8
        for length in self.shape:
            self.num_bytes *= length

    def release(self):
        # Without Python's lock, as torch does.
        self.managed.deleter(self.address)


def loader(**settings):
    settings = {
        "batch_size": BATCH,
        "transform": nepa.RandomResizedCrop(SIDE, scale=(0.2, 1.0)),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "seed": 7,
        "epochs": 1,
        "drop_last": False,
        "decode_threads": 2,
        "framework": "dlpack",
        **settings,
    }
    return nepa.Loader(sys.argv[2], **settings)


def on_cpu():
    """The pixels of each batch, as bytes."""
    batches = []
    for batch in loader(device="cpu"):
        tensor = Tensor(batch.images, None)
        batches.append(ctypes.string_at(tensor.data, tensor.num_bytes))
        tensor.release()
    return batches


def use_device():
    """What a library does that computes on the GPU: the context that all share, current here."""
    context = ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    call("cuCtxSetCurrent", context)


def new_stream():
    stream = ctypes.c_void_p()
    non_blocking = 1
    call("cuStreamCreate", ctypes.byref(stream), non_blocking)
    return stream


def copied(take):
    """The pixels of each batch, copied by work that is waited for at the end. `take` gives a tensor
    of an array, and the stream to copy on."""
    copies, streams = [], []
    for batch in loader(device="cuda:0"):
        images = batch.images
        del batch
        assert images.__dlpack_device__() == (CUDA, 0)
        tensor, stream = take(len(copies), images)
        del images
        assert tensor.device == (CUDA, 0) and tensor.shape[1:] == (3, SIDE, SIDE)
        copy = ctypes.create_string_buffer(tensor.num_bytes)
        start, num_bytes = ctypes.c_uint64(tensor.data), ctypes.c_size_t(tensor.num_bytes)
        call("cuMemcpyDtoHAsync_v2", copy, start, num_bytes, stream)
        tensor.release()
        copies.append(copy)
        streams.append(stream)
    for stream in streams:
        call("cuStreamSynchronize", stream)
    return [copy.raw for copy in copies]


def mean_difference(found, expected):
    """In 255ths, of the values of two images; NaN where there are such."""
    found, expected = array.array("f", found), array.array("f", expected)
    return sum(abs(a - b) for a, b in zip(found, expected)) * 127.5 / len(expected)


def check(found, expected):
    assert [len(batch) for batch in found] == [len(batch) for batch in expected]
    for number, (batch, other) in enumerate(zip(found, expected)):
        one = 4 * 3 * SIDE * SIDE
        for start in range(0, len(other), one):
            mean = mean_difference(batch[start : start + one], other[start : start + one])
            # nvJPEG repeats chroma where libjpeg-turbo interpolates it.
            assert mean <= 3, f"batch {number}: not the pixels of the CPU, {mean} off in the mean"


def ordered():
    expected = on_cpu()
    # Other images differ by more, so that a batch that was written over is seen.
    others = zip(expected[:-1], expected[1:])
    assert min(mean_difference(one, other) for one, other in others) > 6
    use_device()
    own = [new_stream(), new_stream()]

    def take(number, images):
        if number % 5 == 4:
            # It orders its work by itself.
            tensor = Tensor(images, -1)
            call("cuCtxSynchronize")
            return tensor, own[0]
        argument, stream = [
            (None, None),  # the default stream
            (2, ctypes.c_void_p(2)),  # the thread's
            (own[0].value, own[0]),
            (own[1].value, own[1]),
        ][number % 5]
        return Tensor(images, argument), stream

    check(copied(take), expected)


def unordered():
    expected = on_cpu()
    use_device()
    stream = new_stream()
    check(copied(lambda _, images: (Tensor(images, -1), stream)), expected)


def context():
    current = ctypes.c_void_p()
    call("cuCtxGetCurrent", ctypes.byref(current))
    return current.value


def refusal(of, **settings):
    try:
        for _ in loader(**settings):
            break
    except of as error:
        return str(error)
    raise AssertionError(f"{settings} are not refused")


def forms():
    for layout, patch_size, shape in [
        ("NCHW", None, (BATCH, 3, SIDE, SIDE)),
        ("NHWC", None, (BATCH, SIDE, SIDE, 3)),
        ("patches", 8, (BATCH, 9, 3 * 8 * 8)),
    ]:
        for dtype, bits in [("float32", 32), ("bfloat16", 16)]:
            opened = loader(device="cuda:0", layout=layout, patch_size=patch_size, dtype=dtype)
            tensor = Tensor(next(iter(opened)).images, 1)
            assert tensor.shape == shape, tensor.shape
            assert tensor.managed.tensor.bits == bits
            assert (tensor.managed.tensor.code == BFLOAT) == (dtype == "bfloat16")
            # It outlives its loader, and goes on any thread.
            opened.close()
            del opened
            thread = threading.Thread(target=tensor.release)
            thread.start()
            thread.join()
    # A thread keeps the context that it has: none, or its own.
    assert context() is None
    opened = loader(device="cuda:0")
    batches = iter(opened)
    images = next(batches).images
    Tensor(images, 1).release()
    del images, batches
    opened.close()
    assert context() is None
    use_device()
    assert context() is not None

    images = next(iter(loader(device="cuda:0"))).images
    try:
        images.__dlpack__(stream=0)
        raise AssertionError("stream 0 is not refused")
    except ValueError as error:
        assert "stream" in str(error)
    views = nepa.MultiCrop()
    assert "uint8" in refusal(nepa.SettingError, device="cuda:0", dtype="uint8")
    assert "MultiCrop" in refusal(nepa.SettingError, device="cuda:0", transform=views)
    assert "cuda:5" in refusal(nepa.DeviceError, device="cuda:5")


{"ordered": ordered, "unordered": unordered, "forms": forms}[sys.argv[1]]()
