//! What the names of a data set's objects have in common.

/// Length of the folder part that all URLs share.
pub(super) fn common_root(urls: &[&str]) -> usize {
    let first = urls[0].as_bytes();
    let shared = urls
        .iter()
        .map(|url| {
            let same = first.iter().zip(url.as_bytes());
            same.take_while(|(a, b)| a == b).count()
        })
        .min()
        .unwrap_or(0);
    first[..shared]
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |slash| slash + 1)
}
