//! Names of shards that do not depend on where the data set lies.

/// Names relative to the deepest folder that holds all of `urls`.
pub(crate) fn names_below_root(urls: &[&str]) -> Vec<String> {
    let folder = |url: &str| url.rfind('/').map_or(0, |slash| slash + 1);
    let Some(first) = urls.first() else {
        return Vec::new();
    };
    let mut root = &first[..folder(first)];
    while !urls.iter().all(|url| url.starts_with(root)) {
        root = &root[..folder(root.trim_end_matches('/'))];
    }
    urls.iter()
        .map(|url| url[root.len()..].to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_do_not_depend_on_where_the_data_set_lies() {
        let names = ["train-0.parquet", "train-1.parquet"];
        assert_eq!(
            names_below_root(&["s3://b/in1k/train-0.parquet", "s3://b/in1k/train-1.parquet"]),
            names
        );
        assert_eq!(
            names_below_root(&["/data/train-0.parquet", "/data/train-1.parquet"]),
            names
        );
        assert_eq!(
            names_below_root(&["/d/a/0.parquet", "/d/b/0.parquet"]),
            ["a/0.parquet", "b/0.parquet"]
        );
        assert_eq!(
            names_below_root(&["file:///d/only.parquet"]),
            ["only.parquet"]
        );
        assert_eq!(
            names_below_root(&["/a/0.parquet", "s3://b/0.parquet"]),
            ["/a/0.parquet", "s3://b/0.parquet"]
        );
    }
}
