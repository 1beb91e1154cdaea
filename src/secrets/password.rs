//! The password for the broker, which may come from a file.

use std::{fs, io, path::Path, sync::Arc};

use super::{
    Secret,
    watched::{Look, Watched},
};

/// A password, and where it comes from. A clone shares the file.
#[derive(Debug, Clone)]
pub enum Password {
    /// The configuration itself.
    Value(Secret),
    /// A file.
    File(Arc<Watched<Secret, PasswordError>>),
}

/// Why a file has no password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// There is nothing in it, or not yet.
    #[error("it is empty")]
    Empty,
}

impl Password {
    /// That in a file, which is read.
    ///
    /// # Errors
    /// [`PasswordError`] when there is none.
    pub fn file(file: &Path) -> Result<Self, PasswordError> {
        Watched::new(file, read).map(|file| Self::File(Arc::new(file)))
    }

    /// The password as it is now: the file is looked at, and one that cannot be used changes nothing.
    pub fn now(&self) -> Secret {
        match self {
            Self::Value(password) => password.clone(),
            Self::File(file) => {
                file.look_again();
                let Look { value, error, .. } = file.look();
                if let Some(error) = error {
                    tracing::error!(%error, "password_file cannot be used; the password read before stays");
                }
                value
            }
        }
    }
}

fn read(file: &Path) -> Result<Secret, PasswordError> {
    match fs::read_to_string(file)?.trim_end_matches(['\r', '\n']) {
        "" => Err(PasswordError::Empty),
        password => Ok(Secret::new(password)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_is_being_written_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        fs::write(&file, "\n").unwrap();
        assert!(matches!(Password::file(&file), Err(PasswordError::Empty)));
        fs::write(&file, "first \r\n").unwrap();
        let password = Password::file(&file).unwrap();
        let now = |expected: &str| assert_eq!(password.now().expose(), expected);
        now("first ");
        fs::write(&file, "").unwrap();
        now("first ");
        fs::write(&file, "the second").unwrap();
        now("the second");
        fs::remove_file(&file).unwrap();
        now("the second");
        assert!(!format!("{password:?}").contains("second"));
    }
}
