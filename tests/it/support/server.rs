//! A far side as a process of the test's own.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::eventually;

/// Where a program is; `None`, with a line that says so, where it is not installed. `required` is a variable that
/// makes this a failure.
pub(crate) fn find(program: &str, required: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/lib/rabbitmq/bin"].map(PathBuf::from)) // not in everybody's PATH
        .map(|dir| dir.join(program))
        .find(|file| file.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os(required).is_none(),
            "{program} is not installed: run scripts/test"
        );
        println!("skipped: no {program} (run scripts/test, which brings one)");
    }
    found
}

/// A port of loopback that nobody listens on.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A certificate of this machine's loopback that nobody vouches for, and its key: two PEM files.
pub(crate) fn self_signed(dir: &Path) -> (PathBuf, PathBuf) {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (cert, key)
}

/// A server on a port of loopback with a folder of its own; killed when dropped.
pub(crate) struct Server {
    program: PathBuf,
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
    child: Option<Child>,
}

impl Server {
    /// Nothing runs yet.
    pub(crate) fn new(program: PathBuf) -> Self {
        Self {
            program,
            dir: tempfile::tempdir().unwrap(),
            port: free_port(),
            child: None,
        }
    }

    /// Starts it and waits until it listens.
    pub(crate) async fn start(&mut self, args: &[String]) {
        let log = self.dir.path().join("server.log");
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = Command::new(&self.program)
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        let child = self.child.insert(child);
        let addr = SocketAddr::from(([127, 0, 0, 1], self.port));
        eventually(&format!("{}", self.program.display()), async || {
            let gone = child.try_wait().unwrap();
            assert!(
                gone.is_none(),
                "{gone:?}: {}",
                std::fs::read_to_string(&log).unwrap()
            );
            TcpStream::connect_timeout(&addr, Duration::from_millis(200)).ok()
        })
        .await;
    }

    /// Sends a signal by name, for example `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &id])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// SIGTERM, and the end of it.
    pub(crate) async fn stop(&mut self) {
        self.signal("TERM");
        let child = self.child.as_mut().unwrap();
        eventually("the server to end", async || child.try_wait().unwrap()).await;
        self.child = None;
    }

    /// SIGKILL, and the end of it.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
