//! nvJPEG's decoder in three phases, one image after another, and the question whether the engines
//! take a file.
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::Arc;

use nvjpeg_sys as nv;

use super::{
    Backend, Bitstream, DEVICE_ALLOCATOR, Destination, DeviceBuffer, Implementation, Library,
    NvjpegError, PINNED_ALLOCATOR, Params, Pinned, State, check, check_phase, raw_stream,
    unsupported,
};
use crate::backend::cuda::accelerator::CudaStreamRef;
use crate::backend::device::engine_rules::HostSides;
use crate::image::PixelRect;
use crate::stats::RefusalPhase;

/// Asks the device's engines whether they take a file, on the thread that would send it to them.
#[derive(Debug)]
pub struct SupportCheck {
    // Dropped before the handle.
    bitstream: Bitstream,
    params: Params,
    library: Arc<Library>,
}

// SAFETY: as for `DecoupledDecoder`.
unsafe impl Send for SupportCheck {}

impl SupportCheck {
    /// For the engines of this handle.
    pub fn new(library: &Arc<Library>) -> Result<Self, NvjpegError> {
        Ok(Self {
            bitstream: Bitstream::new(library)?,
            params: Params::new(library)?,
            library: Arc::clone(library),
        })
    }

    /// An error where they do not. Reads the file's markers only.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), NvjpegError> {
        // SAFETY: the objects are live, and so are the bytes; a pointer to them that stays is not
        // used before the next file's comes.
        check_phase(
            unsafe {
                nv::nvjpegJpegStreamParseHeader(
                    self.library.handle,
                    bytes.as_ptr(),
                    bytes.len(),
                    self.bitstream.0,
                )
            },
            RefusalPhase::Parse,
            "parse the JPEG's header",
        )?;
        let mut refuses = 0;
        // SAFETY: the objects are live; 0 is written where the file is supported.
        check_phase(
            unsafe {
                nv::nvjpegDecodeBatchedSupportedEx(
                    self.library.handle,
                    self.bitstream.0,
                    self.params.0,
                    &raw mut refuses,
                )
            },
            RefusalPhase::Support,
            "say whether its engines take the JPEG",
        )?;
        if refuses == 0 {
            Ok(())
        } else {
            Err(unsupported())
        }
    }
}

/// What one image in flight needs on the host.
#[derive(Debug)]
struct HostSide {
    bitstream: Bitstream,
    pinned: Pinned,
    /// A copy of the file: nvJPEG keeps a pointer into it, and does not say for how long. It costs
    /// some 10 us of an image's 600.
    file: Vec<u8>,
}

/// Decodes one image after another in three phases: on the host, over the bus, on the device.
///
/// The host phase of an image may overlap with the device phases of the one before, as each uses a
/// host side of its own; NVIDIA's sample does the same. Before the next transfer the device must be
/// done with the last image: [`Self::transfer_and_decode`] says so. It must also be done with it
/// before this is dropped; whoever owns it drops the memory of its images first, which waits.
#[derive(Debug)]
pub struct DecoupledDecoder {
    // In this order they are dropped: the state before the buffers attached to it, everything
    // before the handle.
    state: State,
    implementation: Implementation,
    params: Params,
    host: [HostSide; 2],
    _device: DeviceBuffer,
    sides: HostSides,
    library: Arc<Library>,
}

// SAFETY: nvJPEG objects are bound to no thread; `&mut self` keeps two threads from using them at
// once.
unsafe impl Send for DecoupledDecoder {}

impl DecoupledDecoder {
    /// A decoder of this backend to interleaved RGB.
    pub fn new(library: &Arc<Library>, backend: Backend) -> Result<Self, NvjpegError> {
        let handle = library.handle;
        let mut implementation = null_mut();
        // SAFETY: each call below gets the live handle (or what was just made from it) and a place
        // for one pointer.
        let implementation = unsafe {
            check(
                nv::nvjpegDecoderCreate(handle, backend.raw(), &raw mut implementation),
                "make a decoder",
            )?;
            Implementation(implementation)
        };
        let params = Params::new(library)?;
        let mut device = null_mut();
        // SAFETY: as above; the allocator is a static.
        let device = unsafe {
            check(
                nv::nvjpegBufferDeviceCreate(handle, &raw mut DEVICE_ALLOCATOR, &raw mut device),
                "make a device buffer",
            )?;
            DeviceBuffer(device)
        };
        let side = || {
            let bitstream = Bitstream::new(library)?;
            let mut pinned = null_mut();
            // SAFETY: as above; the allocator is a static.
            let pinned = unsafe {
                check(
                    nv::nvjpegBufferPinnedCreate(
                        handle,
                        &raw mut PINNED_ALLOCATOR,
                        &raw mut pinned,
                    ),
                    "make a page-locked buffer",
                )?;
                Pinned(pinned)
            };
            Ok(HostSide {
                bitstream,
                pinned,
                file: Vec::new(),
            })
        };
        let host = [side()?, side()?];
        // The last to be made and the first to be dropped, where a step fails too.
        let mut state = null_mut();
        // SAFETY: as above.
        let state = unsafe {
            check(
                nv::nvjpegDecoderStateCreate(handle, implementation.0, &raw mut state),
                "make a decoder's state",
            )?;
            State(state)
        };
        // SAFETY: both are live, and the buffer lives as long as the state.
        check(
            unsafe { nv::nvjpegStateAttachDeviceBuffer(state.0, device.0) },
            "attach the device buffer",
        )?;
        Ok(Self {
            host,
            state,
            implementation,
            params,
            _device: device,
            sides: HostSides::default(),
            library: Arc::clone(library),
        })
    }

    /// The host phase: parses the file and decodes its Huffman codes; of the pixels only `part`
    /// will be made, or all. A decoder that was once asked for a part is always asked for one.
    /// `bytes` are not needed afterwards. After an error the image is given up; one that is in
    /// flight is not touched.
    pub fn decode_on_host(
        &mut self,
        bytes: &[u8],
        part: Option<PixelRect>,
    ) -> Result<(), NvjpegError> {
        if let Some(part) = part {
            // SAFETY: the parameters are live.
            check_phase(
                unsafe {
                    nv::nvjpegDecodeParamsSetROI(
                        self.params.0,
                        part.left as c_int,
                        part.top as c_int,
                        part.width as c_int,
                        part.height as c_int,
                    )
                },
                RefusalPhase::Support,
                "be told which part is wanted",
            )?;
        }
        // The last transfer is from the other side; this one's was over before that one began.
        let HostSide {
            bitstream,
            pinned,
            file,
        } = &mut self.host[self.sides.free()];
        file.clear();
        file.extend_from_slice(bytes);
        // SAFETY: nvJPEG may keep a pointer into the file in the bitstream; both live in this side,
        // and the file is not written before the bitstream gets the next one.
        check_phase(
            unsafe {
                nv::nvjpegJpegStreamParse(
                    self.library.handle,
                    file.as_ptr(),
                    file.len(),
                    0,
                    0,
                    bitstream.0,
                )
            },
            RefusalPhase::Parse,
            "parse the JPEG",
        )?;
        let mut refuses = 0;
        // SAFETY: all objects are live; 0 is written where the image is supported.
        check_phase(
            unsafe {
                nv::nvjpegDecoderJpegSupported(
                    self.implementation.0,
                    bitstream.0,
                    self.params.0,
                    &raw mut refuses,
                )
            },
            RefusalPhase::Support,
            "say whether the JPEG is supported",
        )?;
        if refuses != 0 {
            return Err(unsupported());
        }
        // SAFETY: all objects are live, and no transfer reads this side's buffer.
        unsafe {
            check_phase(
                nv::nvjpegStateAttachPinnedBuffer(self.state.0, pinned.0),
                RefusalPhase::Host,
                "attach a page-locked buffer",
            )?;
            check_phase(
                nv::nvjpegDecodeJpegHost(
                    self.library.handle,
                    self.implementation.0,
                    self.state.0,
                    self.params.0,
                    bitstream.0,
                ),
                RefusalPhase::Host,
                "decode the JPEG on the host",
            )
        }
    }

    /// Enqueues the other phases of the image that was last decoded on the host, without an error.
    /// After an error here part of them may be enqueued: the caller waits for the stream before it
    /// uses this decoder again.
    ///
    /// # Safety
    ///
    /// The device is done with this decoder's last image; `destination` is device memory for the
    /// wanted part and stays until the stream has done this.
    pub unsafe fn transfer_and_decode(
        &mut self,
        destination: Destination,
        stream: &CudaStreamRef,
    ) -> Result<(), NvjpegError> {
        let bitstream = &self.host[self.sides.free()].bitstream;
        let mut image = destination.raw();
        // SAFETY: all objects are live, and the caller answers for the rest.
        unsafe {
            check_phase(
                nv::nvjpegDecodeJpegTransferToDevice(
                    self.library.handle,
                    self.implementation.0,
                    self.state.0,
                    bitstream.0,
                    raw_stream(stream),
                ),
                RefusalPhase::Transfer,
                "move the JPEG to the device",
            )?;
            self.sides.transferred();
            check_phase(
                nv::nvjpegDecodeJpegDevice(
                    self.library.handle,
                    self.implementation.0,
                    self.state.0,
                    &raw mut image,
                    raw_stream(stream),
                ),
                RefusalPhase::Device,
                "decode the JPEG on the device",
            )
        }
    }
}
