//! `test`: plays files of cases.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{
    error::{CommandError, FAILED},
    print,
};
use crate::{cases, config::Config};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Files of cases. Each may name the table that it is for; else it is that of `--config`.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
}

/// Plays all cases and prints what became of them; `table` is that of files that name none. The runtime's clock must be
/// paused: in a case time passes as it is needed.
pub(super) async fn test(
    arguments: &Arguments,
    table: Option<&Path>,
    env: &BTreeMap<String, String>,
) -> Result<(), CommandError> {
    let mut read = Vec::new();
    let mut mistakes = Vec::new();
    // All mistakes of all files, before anything is played.
    for file in &arguments.files {
        let cases = match cases::read(file) {
            Ok(cases) => cases,
            Err(error) => {
                mistakes.push(error.to_string());
                continue;
            }
        };
        match Config::load_without_secrets(cases.table.as_deref().or(table), env) {
            Ok(config) => read.push((file, cases, config)),
            Err(error) => mistakes.push(error.to_string()),
        }
    }
    if !mistakes.is_empty() {
        return Err(CommandError::Cases(mistakes));
    }
    let mut played = Vec::new();
    for (file, cases, config) in read {
        played.push(cases::play(file.clone(), &cases.cases, &config).await?);
    }
    let (good, report) = cases::report(&played, arguments.json);
    print(&report)?;
    if good { Ok(()) } else { Err(CommandError::Printed(FAILED)) }
}
