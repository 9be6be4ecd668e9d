//! Dotted keys, such as `data.augment.size`: a section and a key of it, and values in a table by
//! them.
/// A key of a section as it is written elsewhere: with the section's name.
pub(super) fn dotted(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.to_owned()
    } else {
        format!("{section}.{key}")
    }
}

/// The value of a dotted key.
pub(super) fn get<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((first, rest)) => get(table.get(first)?.as_table()?, rest),
    }
}

pub(super) fn remove(table: &mut toml::Table, key: &str) -> Option<toml::Value> {
    match key.split_once('.') {
        None => table.remove(key),
        Some((first, rest)) => remove(table.get_mut(first)?.as_table_mut()?, rest),
    }
}

/// Sets a dotted key, in sections that are made where they are not there; `None` where the key
/// leads through a value that is no section.
pub(super) fn insert(table: &mut toml::Table, key: &str, value: toml::Value) -> Option<()> {
    let Some((first, rest)) = key.split_once('.') else {
        table.insert(key.to_owned(), value);
        return Some(());
    };
    let section = table
        .entry(first)
        .or_insert_with(|| toml::Value::Table(toml::Table::new()))
        .as_table_mut()?;
    insert(section, rest, value)
}
