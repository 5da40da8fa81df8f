//! The program that is run: how it is started, what it sees of our environment, and how its end reads.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::process::{Child, Command};

/// What our own variables begin with. They hold what signs in to the org, and the program has no use for it.
const OURS: [&str; 4] = ["ORGSTREAM_", "SALESFORCE_", "SFDC_", "SF_"];

/// The variable of the store's address, which holds its password.
const STORE: &str = "DATABASE_URL";

/// A command as configured.
pub(super) struct Program {
    /// Name of the handler.
    pub(super) handler: String,
    /// The program and its arguments.
    pub(super) command: Vec<String>,
    /// Variables to set. Any of them may be a secret.
    pub(super) env: BTreeMap<String, SecretString>,
    /// The folder it runs in.
    pub(super) cwd: Option<PathBuf>,
}

impl Program {
    /// What it is called in messages: the program without its arguments, which may hold anything.
    pub(super) fn name(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }

    /// Starts it, for events of this subscription, in a process group of its own.
    ///
    /// # Errors
    ///
    /// Why it cannot be started and what to do about it.
    pub(super) fn start(&self, subscription: &str) -> Result<(Child, Group), String> {
        let (program, arguments) = self.command.split_first().ok_or("`command` is blank")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A terminal's Ctrl-C is for us: the program is told by the end of its input.
            .process_group(0)
            .kill_on_drop(true);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(name)) {
            command.env_remove(name);
        }
        command.env("ORGSTREAM_SUBSCRIPTION", subscription);
        command.env("ORGSTREAM_HANDLER", &self.handler);
        for (name, value) in &self.env {
            command.env(name, value.expose_secret());
        }
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        let child = command.spawn().map_err(|error| self.why_not(&error))?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)));
        Ok((child, group))
    }

    fn why_not(&self, error: &io::Error) -> String {
        let name = self.name();
        if self.cwd.as_ref().is_some_and(|cwd| !cwd.is_dir()) {
            return format!("cannot start `{name}`: `cwd` is not a folder");
        }
        let cure = match error.kind() {
            io::ErrorKind::NotFound => {
                "there is no such program in the PATH or under that path: look at `command`"
                    .to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "it may not be run: chmod +x it, or put its interpreter first in `command`"
                    .to_owned()
            }
            // A script without its first line.
            _ if error.raw_os_error() == Some(8) => {
                "it is not a program: begin it with #!, or put its interpreter first in `command`"
                    .to_owned()
            }
            _ => error.to_string(),
        };
        format!("cannot start `{name}`: {cure}")
    }
}

fn is_ours(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    name == STORE || OURS.iter().any(|prefix| name.starts_with(prefix))
}

/// The process group of a started program: itself and whatever it has started. Killed when dropped, for
/// nothing may go on with an event that somebody else is given again.
pub(super) struct Group(Option<Pid>);

impl Group {
    /// The process ID, for people.
    pub(super) fn id(&self) -> i32 {
        self.0.map_or(0, |pid| pid.as_raw_nonzero().get())
    }

    /// Asks all of them to end.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends all of them. Once only: when the last of them is gone the number may become somebody else's.
    pub(super) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.0 = None;
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // Fails where none is left, which is what is wanted.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a process ended; reads on after its name.
pub(super) fn end_of(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(9)) => "was killed (signal 9): too little memory, perhaps".to_owned(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(command: &[&str], cwd: Option<&str>) -> Program {
        Program {
            handler: "h".into(),
            command: command.iter().map(|&part| part.to_owned()).collect(),
            env: BTreeMap::from([("COLOUR".to_owned(), SecretString::from("blue"))]),
            cwd: cwd.map(PathBuf::from),
        }
    }

    #[test]
    fn what_signs_in_to_the_org_and_the_store_is_kept_back() {
        for (name, ours) in [
            ("SALESFORCE_PRIVATE_KEY", true),
            ("SF_CLIENT_SECRET", true),
            ("SFDC_USERNAME", true),
            ("ORGSTREAM_ENCRYPTION_KEY", true),
            ("ORGSTREAM_CONFIG", true),
            ("DATABASE_URL", true),
            ("PATH", false),
            ("HOME", false),
            ("LANG", false),
            ("MY_DATABASE_URL", false),
            ("STRIPE_KEY", false),
        ] {
            assert_eq!(is_ours(&name.into()), ours, "{name}");
        }
    }

    #[tokio::test]
    async fn it_sees_its_variables_and_runs_in_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().canonicalize().unwrap();
        let script = "echo $COLOUR $ORGSTREAM_SUBSCRIPTION $ORGSTREAM_HANDLER; pwd -P";
        let program = program(&["sh", "-c", script], place.to_str());
        let (child, _group) = program.start("orders").unwrap();
        let output = child.wait_with_output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, format!("blue orders h\n{}\n", place.display()));
    }

    #[tokio::test]
    async fn what_cannot_be_started_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        std::fs::write(&script, "hidden").unwrap();
        let script = script.to_str().unwrap();
        for (command, cwd, why) in [
            (
                &["no-such-program", "hidden"][..],
                None,
                "look at `command`",
            ),
            (&[script][..], None, "chmod +x"),
            (
                &["true"][..],
                Some("/no/such/folder"),
                "`cwd` is not a folder",
            ),
        ] {
            let Err(error) = program(command, cwd).start("orders") else {
                panic!("{command:?} was started");
            };
            assert!(error.contains(why), "{error}");
            assert!(!error.contains("hidden"), "{error}");
        }
    }

    #[tokio::test]
    async fn the_whole_group_ends_with_it() {
        // The shell waits for a child of its own, which would keep the output open.
        let (child, group) = program(&["sh", "-c", "sleep 600 & echo up; wait"], None)
            .start("orders")
            .unwrap();
        drop(group);
        let output =
            tokio::time::timeout(std::time::Duration::from_secs(30), child.wait_with_output());
        let output = output.await.unwrap().unwrap();
        assert_eq!(
            end_of(output.status),
            "was killed (signal 9): too little memory, perhaps"
        );
    }
}
