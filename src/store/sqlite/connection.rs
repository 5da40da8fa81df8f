//! The one connection to the file, and the lock of the process that runs subscriptions.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::PoisonError;
use std::time::Duration;

use sqlx::sqlite::{
    Sqlite, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Transaction};
use tokio::sync::{Mutex, MutexGuard};

use crate::store::{ConnectionUse, StoreError};

/// How soon a file is opened again that another process had locked.
const OPEN_AGAIN: Duration = Duration::from_millis(20);

/// A SQLite database and what this process holds of it.
pub(super) struct Database {
    options: SqliteConnectOptions,
    connection: Mutex<State>,
    /// `None` for a database in memory, which no other process sees.
    lock_path: Option<PathBuf>,
    lock: std::sync::Mutex<Option<File>>,
}

enum State {
    Unopened,
    Open(SqliteConnection),
    Closed,
}

impl Database {
    /// Reads the URL and looks for the folder of the file.
    pub(super) fn new(url: &str, timeout: Duration) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str(url)?
            .create_if_missing(true)
            // Readers and the writer do not wait for each other.
            .journal_mode(SqliteJournalMode::Wal)
            // With NORMAL a commit survives the death of the process, but not of the machine; a rotated
            // refresh token and a parked event must survive both, and a write a second is cheap.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(timeout / 2);
        let in_memory = url.contains(":memory:") || url.contains("mode=memory");
        let lock_path = if in_memory {
            None
        } else {
            let file = options.get_filename();
            look_for_folder(file)?;
            let mut path = file.as_os_str().to_owned();
            path.push(".lock");
            Some(path.into())
        };
        Ok(Self {
            options,
            connection: Mutex::new(State::Unopened),
            lock_path,
            lock: std::sync::Mutex::new(None),
        })
    }

    /// The connection, opened at first; callers take turns.
    pub(super) async fn connection(&self) -> Result<Guard<'_>, StoreError> {
        let mut state = self.connection.lock().await;
        match &*state {
            State::Open(_) => {}
            State::Closed => return Err(StoreError::Unavailable("it is closed".to_owned())),
            State::Unopened => {
                *state = State::Open(self.open().await?);
            }
        }
        Ok(Guard(state))
    }

    /// Opens the file. While another process opens it for the first time, which makes it a write-ahead log, or
    /// closes it as the last, which takes that log away, SQLite says that it is locked without waiting as it does
    /// elsewhere: it is asked again, until the caller's time is over.
    async fn open(&self) -> Result<SqliteConnection, StoreError> {
        loop {
            let error = match self.options.connect().await {
                Ok(opened) => return Ok(opened),
                Err(error) => error,
            };
            if !is_locked(&error) {
                let file = self.options.get_filename().display();
                return Err(match StoreError::from(error) {
                    StoreError::Unavailable(why) => {
                        StoreError::Unavailable(format!("{file}: {why}"))
                    }
                    other => other,
                });
            }
            tokio::time::sleep(OPEN_AGAIN).await;
        }
    }

    /// Makes this process the one that runs subscriptions. The lock ends with the process, however it
    /// ends; the empty file beside the database stays.
    pub(super) fn claim(&self) -> Result<(), StoreError> {
        let Some(path) = &self.lock_path else {
            return Ok(());
        };
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_some() {
            return Ok(());
        }
        let failed = |error: std::io::Error| {
            StoreError::Unavailable(format!("cannot lock {}: {error}", path.display()))
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                *held = Some(file);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(StoreError::Config(format!(
                "another orgstream process runs subscriptions on this SQLite store (it holds {}): stop \
                 that one, or use Postgres, where several workers share the subscriptions",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The one connection: at rest, or with somebody.
    pub(super) fn connections(&self) -> ConnectionUse {
        let (idle, in_use) = match self.connection.try_lock() {
            Ok(state) => (usize::from(matches!(&*state, State::Open(_))), 0),
            Err(_) => (0, 1),
        };
        ConnectionUse {
            pool: "calls",
            idle,
            in_use,
            max: 1,
        }
    }

    /// Closes the connection and gives the lock back; later calls fail.
    pub(super) async fn close(&self) {
        let mut state = self.connection.lock().await;
        if let State::Open(connection) = std::mem::replace(&mut *state, State::Closed) {
            // Nothing is lost where this fails: every commit is on the disk already.
            let _ = connection.close().await;
        }
        self.lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// True for `SQLITE_BUSY` and `SQLITE_LOCKED`, the low bytes of the codes that sqlx gives.
fn is_locked(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    let code = code.and_then(|code| code.parse::<u32>().ok());
    code.is_some_and(|code| matches!(code & 0xff, 5 | 6))
}

/// The connection while one caller has it.
pub(super) struct Guard<'a>(MutexGuard<'a, State>);

impl Guard<'_> {
    /// Begins a transaction, which rolls back unless committed.
    pub(super) async fn begin(
        &mut self,
        statement: &'static str,
    ) -> Result<Transaction<'_, Sqlite>, StoreError> {
        match &mut *self.0 {
            State::Open(connection) => Ok(connection.begin_with(statement).await?),
            State::Unopened | State::Closed => {
                Err(StoreError::Unavailable("it is closed".to_owned()))
            }
        }
    }
}

/// SQLite creates the file, but no folder.
fn look_for_folder(file: &Path) -> Result<(), StoreError> {
    let folder = match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => return Ok(()),
    };
    if folder.is_dir() {
        Ok(())
    } else {
        Err(StoreError::Config(format!(
            "store.url names {}, but there is no folder {}: create it, or choose another path",
            file.display(),
            folder.display()
        )))
    }
}
