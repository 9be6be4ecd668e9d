//! Numbers on the command line, refused in words.
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use crate::device::DeviceChoice;

/// A whole number that is at least so much.
pub(crate) fn at_least<T>(least: u64) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync
where
    T: TryFrom<u64>,
{
    whole(least..=u64::MAX)
}

/// A whole number within a range.
pub(crate) fn whole<T>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync
where
    T: TryFrom<u64>,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        let rule = || match (range.start(), range.end()) {
            (least, &u64::MAX) => format!("it must be a whole number, {least} or more"),
            (least, most) => format!("it must be a whole number from {least} to {most}"),
        };
        let number: u64 = number.ok_or_else(rule)?;
        T::try_from(number).map_err(|_| format!("{number} is too large"))
    }
}

/// A device; what was probably meant stands as clap's own tips do.
pub(crate) fn device(text: &str) -> Result<DeviceChoice, String> {
    let read = text.parse::<DeviceChoice>();
    read.map_err(|error| error.to_string().replace("\ntip:", "\n\n  tip:"))
}

/// An address to listen at.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "it must be an IP address and a port, as 127.0.0.1:9400 or [::1]:9400".to_owned()
    })
}

/// A number.
pub(crate) fn number(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| "it must be a number".to_owned())
}
