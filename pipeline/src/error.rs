//! What can go wrong in the pipeline. A sample can be bad (counted, replaced, reported) or a run can be bad (it ends).
use crate::SampleId;
use crate::image_decode::ImageFormat;

/// Where something happened, as far as known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// URL of the object, without secrets.
    pub object: String,
    /// Row group in the object.
    pub row_group: Option<usize>,
    /// Row in the row group.
    pub row: Option<usize>,
    /// Byte range in the object.
    pub bytes: Option<std::ops::Range<u64>>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.object)?;
        if let Some(row_group) = self.row_group {
            write!(f, ", row group {row_group}")?;
        }
        if let Some(row) = self.row {
            write!(f, ", row {row}")?;
        }
        if let Some(bytes) = &self.bytes {
            write!(f, ", bytes {}..{}", bytes.start, bytes.end)?;
        }
        Ok(())
    }
}

/// A data set cannot be opened or read: the run is bad.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {}

/// One image cannot be decoded or cropped: the sample is bad.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There are no bytes.
    #[error("the image is empty (0 bytes)")]
    Empty,
    /// The first bytes belong to no known format.
    #[error("not an image in a known format (JPEG, PNG, WebP, BMP, GIF, TIFF): it begins with {start:02x?}")]
    UnknownFormat {
        /// The first bytes, at most 8.
        start: Vec<u8>,
    },
    /// libjpeg-turbo refuses it.
    #[error("the JPEG cannot be decoded")]
    Jpeg(#[source] turbojpeg::Error),
    /// A decoder other than the JPEG one refuses it.
    #[error("the {format} cannot be decoded")]
    Decode {
        /// Its format.
        format: ImageFormat,
        /// What the decoder says.
        #[source]
        source: image::ImageError,
    },
    /// The GIF decoder refuses it.
    #[error("the GIF cannot be decoded")]
    Gif(#[source] gif::DecodingError),
    /// The file ends before the image does.
    #[error("the {format} is truncated: the file ends before the image does")]
    Truncated {
        /// Its format.
        format: ImageFormat,
    },
    /// It holds no image, or one without pixels.
    #[error("the {format} holds no pixels ({width} x {height})")]
    NoPixels {
        /// Its format.
        format: ImageFormat,
        /// Width in the header.
        width: u64,
        /// Height in the header.
        height: u64,
    },
    /// The header claims more pixels than a training image can have.
    #[error("the {format} claims {width} x {height} pixels, more than the limit of {limit} (a decompression bomb?)")]
    TooLarge {
        /// Its format.
        format: ImageFormat,
        /// Width in the header.
        width: u64,
        /// Height in the header.
        height: u64,
        /// Most pixels allowed.
        limit: u64,
    },
    /// The header claims more pixels than so few bytes can hold.
    #[error("the {format} claims {width} x {height} pixels, which {num_bytes} bytes cannot hold")]
    TooFewBytes {
        /// Its format.
        format: ImageFormat,
        /// Width in the header.
        width: u64,
        /// Height in the header.
        height: u64,
        /// Length of the file.
        num_bytes: usize,
    },
    /// The kind of pixels has no meaning as RGB here (floating point, say).
    #[error("the {format} holds {color} pixels, which have no set conversion to 8-bit RGB")]
    UnsupportedColor {
        /// Its format.
        format: ImageFormat,
        /// The kind of pixels, as the decoder names it.
        color: String,
    },
    /// A crop plan was drawn for another image.
    #[error("the crop {width} x {height} at ({x}, {y}) does not lie in the image of {image_width} x {image_height} pixels")]
    CropOutside {
        /// Left edge of the crop.
        x: f64,
        /// Top edge of the crop.
        y: f64,
        /// Width of the crop.
        width: f64,
        /// Height of the crop.
        height: f64,
        /// Width of the upright image.
        image_width: u32,
        /// Height of the upright image.
        image_height: u32,
    },
}

/// The loader cannot go on: the run is bad.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// Reading the data set failed.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// Placeholder for the loader's own variants.
    #[error("{0}")]
    Placeholder(SampleId),
}
