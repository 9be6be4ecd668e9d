//! libjpeg-turbo's scanline interface, through the C of `libjpeg/shim.c`: a region of an image,
//! nothing decoded below it, scratch memory used again.
//!
//! The crate `turbojpeg` has no partial decoding. Called by [`super::jpeg`] alone.
#![expect(unsafe_code, reason = "libjpeg-turbo is a C library")]

use std::ffi::{CStr, c_char, c_int};
use std::marker::PhantomData;
use std::ptr::NonNull;

// Links the library whose symbols the shim calls.
use turbojpeg_sys as _;

use super::PixelRect;

/// What libjpeg-turbo says of a file that it cannot decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LibjpegError(String);

#[repr(C)]
struct RawDecoder {
    _private: [u8; 0],
}

/// What the header says, as the shim lays it out.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct RawHeader {
    width: u32,
    height: u32,
    is_cmyk: i32,
    is_arithmetic: i32,
}

#[repr(C)]
struct RawRegion {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
}

unsafe extern "C" {
    fn nepa_jpeg_new(max_scans: c_int) -> *mut RawDecoder;
    fn nepa_jpeg_free(decoder: *mut RawDecoder);
    fn nepa_jpeg_message(decoder: *const RawDecoder) -> *const c_char;
    fn nepa_jpeg_header(
        decoder: *mut RawDecoder,
        bytes: *const u8,
        num_bytes: usize,
        header: *mut RawHeader,
    ) -> c_int;
    fn nepa_jpeg_start(decoder: *mut RawDecoder, to_cmyk: c_int, region: *mut RawRegion) -> c_int;
    fn nepa_jpeg_read(decoder: *mut RawDecoder, pixels: *mut u8, pitch: usize) -> c_int;
}

/// A decoder with its memory, for one image after another.
#[derive(Debug)]
pub(super) struct Libjpeg {
    raw: NonNull<RawDecoder>,
}

// SAFETY: the handle is plain memory of its own, used by whoever holds it.
unsafe impl Send for Libjpeg {}

impl Drop for Libjpeg {
    fn drop(&mut self) {
        // SAFETY: made by `nepa_jpeg_new`, freed once.
        unsafe { nepa_jpeg_free(self.raw.as_ptr()) }
    }
}

impl Libjpeg {
    /// A decoder that refuses progressive files of more than `max_scans` scans.
    ///
    /// # Panics
    /// If there is no memory for it, a few kilobytes.
    pub(super) fn new(max_scans: u16) -> Self {
        // SAFETY: no arguments that could be wrong.
        let raw = unsafe { nepa_jpeg_new(c_int::from(max_scans)) };
        Self {
            raw: NonNull::new(raw).expect("memory for a JPEG decoder"),
        }
    }

    fn error(&self) -> LibjpegError {
        // SAFETY: the message lies in the handle, always ends in a zero byte, and is copied before
        // the handle is used again.
        let message = unsafe { CStr::from_ptr(nepa_jpeg_message(self.raw.as_ptr())) };
        LibjpegError(message.to_string_lossy().into_owned())
    }

    fn checked(&self, status: c_int) -> Result<(), LibjpegError> {
        if status == 0 {
            Ok(())
        } else {
            Err(self.error())
        }
    }

    /// Reads the header of a file, which is forgotten when the result is dropped or the next one
    /// begins.
    pub(super) fn open<'a>(&'a mut self, bytes: &'a [u8]) -> Result<OpenJpeg<'a>, LibjpegError> {
        let mut header = RawHeader::default();
        // SAFETY: `bytes` outlives the result, and without one the shim does not look at them
        // again.
        let status = unsafe {
            nepa_jpeg_header(
                self.raw.as_ptr(),
                bytes.as_ptr(),
                bytes.len(),
                &raw mut header,
            )
        };
        self.checked(status)?;
        Ok(OpenJpeg {
            decoder: self,
            header,
            bytes: PhantomData,
        })
    }
}

/// A file whose header was read.
pub(super) struct OpenJpeg<'a> {
    decoder: &'a mut Libjpeg,
    header: RawHeader,
    bytes: PhantomData<&'a [u8]>,
}

impl OpenJpeg<'_> {
    /// Stored width and height.
    pub(super) fn size(&self) -> (u32, u32) {
        (self.header.width, self.header.height)
    }

    /// Whether [`Self::decode`] gives CMYK.
    pub(super) fn is_cmyk(&self) -> bool {
        self.header.is_cmyk != 0
    }

    /// Whether the codes are arithmetic.
    pub(super) fn is_arithmetic(&self) -> bool {
        self.header.is_arithmetic != 0
    }

    /// Decodes the rows of `wanted` and at least its columns into `pixels`, which is resized to
    /// fit: RGB, or CMYK as it is stored. Returns what was decoded.
    ///
    /// # Panics
    /// If `wanted` does not lie in the image.
    pub(super) fn decode(
        self,
        wanted: PixelRect,
        pixels: &mut Vec<u8>,
    ) -> Result<PixelRect, LibjpegError> {
        let (width, height) = self.size();
        assert!(
            wanted.width > 0
                && wanted.height > 0
                && wanted
                    .left
                    .checked_add(wanted.width)
                    .is_some_and(|end| end <= width)
                && wanted
                    .top
                    .checked_add(wanted.height)
                    .is_some_and(|end| end <= height),
            "{wanted:?} does not lie in an image of {width} x {height} pixels"
        );
        let mut region = RawRegion {
            left: wanted.left,
            top: wanted.top,
            width: wanted.width,
            height: wanted.height,
        };
        // SAFETY: the header was read and the file's bytes are borrowed for as long as `self`.
        let status = unsafe {
            nepa_jpeg_start(
                self.decoder.raw.as_ptr(),
                self.header.is_cmyk,
                &raw mut region,
            )
        };
        self.decoder.checked(status)?;
        let num_channels = if self.is_cmyk() { 4 } else { 3 };
        let pitch = region.width as usize * num_channels;
        pixels.resize(pitch * region.height as usize, 0);
        // SAFETY: decoding was begun, and `pixels` holds the region's rows, `pitch` bytes each.
        let status =
            unsafe { nepa_jpeg_read(self.decoder.raw.as_ptr(), pixels.as_mut_ptr(), pitch) };
        self.decoder.checked(status)?;
        Ok(PixelRect {
            left: region.left,
            top: region.top,
            width: region.width,
            height: region.height,
        })
    }
}
