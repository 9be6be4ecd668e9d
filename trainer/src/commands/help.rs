//! What the long help of several commands says.

/// The exit codes of a command, for the end of its long help; a line each, above those that all
/// have.
pub(super) fn with_exit_codes(examples: &str, own: &str) -> String {
    format!(
        "{examples}\n\nExit codes:\n{own}\n  2          the command line is not understood\n  \
         130, 143   ended by Ctrl-C or SIGTERM"
    )
}
