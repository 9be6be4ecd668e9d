//! Rows of Markdown tables: how many cells one has, and what stands where cells are missing.

/// The cells of a row.
pub(crate) fn num_cells(row: &str) -> usize {
    row.trim().split('|').count().saturating_sub(2)
}

/// A row of a table of so many columns; where its last cells are missing, the first of those says
/// so.
pub(crate) fn filled(row: &str, columns: usize) -> String {
    // A process may be stopped in the middle of a row.
    let end = if row.trim().ends_with('|') { "" } else { " |" };
    let row = row.trim().to_owned() + end;
    let cells = num_cells(&row);
    if cells >= columns {
        return row;
    }
    let why = format!(" FAILED: {cells} of {columns} cells |");
    format!("{row}{why}{}", " |".repeat(columns - cells - 1))
}

/// The row of a measurement that was not done, in a table of so many columns. Outside of a table it
/// is a line of text.
pub(crate) fn without(name: &str, why: &str, columns: usize) -> String {
    if columns < 2 {
        return format!("{name}: {why}");
    }
    let why = why.replace('|', "/");
    format!("| {name} | {why} |{}", " |".repeat(columns - 2))
}

/// What is wrong with the tables of a report: rows whose cells are too few or too many, or that say
/// FAILED, and too few rows.
pub(crate) fn faults(report: &str, least_rows: usize) -> Vec<String> {
    let (mut columns, mut rows, mut faults) = (None, 0, Vec::new());
    for line in report.lines() {
        let is_row = line.starts_with('|');
        rows += usize::from(is_row);
        if line.starts_with("|---") {
            columns = Some(num_cells(line));
        } else if !is_row {
            columns = None;
        }
        let is_odd = columns.is_some_and(|columns| columns != num_cells(line));
        if is_odd || line.contains("FAILED") {
            faults.push(line.to_owned());
        }
    }
    if rows < least_rows {
        faults.push(format!("only {rows} rows"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_cells_are_filled() {
        assert_eq!(filled("| a | 1 |", 2), "| a | 1 |");
        assert_eq!(filled("| a | 1 |", 4), "| a | 1 | FAILED: 2 of 4 cells | |");
        assert_eq!(filled("| a | 1", 3), "| a | 1 | FAILED: 2 of 3 cells |");
        assert_eq!(num_cells(&filled("| a |", 6)), 6);
    }

    #[test]
    fn a_measurement_that_failed_has_all_cells() {
        let row = without("a", "FAILED: x | y", 5);
        assert_eq!(row, "| a | FAILED: x / y | | | |");
        assert_eq!(num_cells(&row), 5);
        assert_eq!(without("a", "FAILED: x", 0), "a: FAILED: x");
    }

    #[test]
    fn faults_of_a_report_are_found() {
        let table = "text\n\n| a | b |\n|---|---|\n| 1 | 2 |\n";
        assert_eq!(faults(table, 3), Vec::<String>::new());
        assert_eq!(faults(table, 4), ["only 3 rows"]);
        let short = format!("{table}| 1 |\n\n| another | with | three |\n|---|---|---|\n");
        assert_eq!(faults(&short, 3), ["| 1 |"]);
        assert_eq!(faults("light: 1 s\nFAILED: too long\n", 0).len(), 1);
    }
}
