//! Ranks in messages.

/// Ranks in words: `rank 2`, `ranks 2 and 3`, `ranks 2, 3 and 7`.
pub(crate) fn list_of(ranks: &[usize]) -> String {
    let names = ranks.iter().map(ToString::to_string).collect::<Vec<_>>();
    match &names[..] {
        [] => "no rank".to_owned(),
        [one] => format!("rank {one}"),
        [first @ .., last] => format!("ranks {} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::list_of;

    #[test]
    fn ranks_are_named_in_words() {
        assert_eq!(list_of(&[2]), "rank 2");
        assert_eq!(list_of(&[2, 3]), "ranks 2 and 3");
        assert_eq!(list_of(&[2, 3, 7]), "ranks 2, 3 and 7");
    }
}
