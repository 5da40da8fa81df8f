//! Connections to the server, each with a transaction begun.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    Pipeline, TlsCertificates, Value,
};

use super::trouble::{Trouble, of_value, refused};

/// Reads `url`; the error is the key it is about, and what is wrong.
pub(super) fn client(
    url: &str,
    tls_verify: bool,
    ca: Option<Vec<u8>>,
) -> Result<Client, (&'static str, String)> {
    const EXPECTED: &str =
        "must be redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], or rediss:// for TLS";
    let invalid = |_| ("url", EXPECTED.to_owned());
    let url = url.trim();
    if !(url.starts_with("redis://") || url.starts_with("rediss://")) || url.contains('#') {
        return Err(("url", EXPECTED.to_owned()));
    }
    let info = url.into_connection_info().map_err(invalid)?;
    let (host, port) = match info.addr() {
        ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), *port),
        _ if ca.is_some() => {
            return Err((
                "ca_file",
                "is for TLS: `url` must begin with rediss://".into(),
            ));
        }
        _ if !tls_verify => {
            return Err((
                "tls_verify",
                "is for TLS: `url` must begin with rediss://".into(),
            ));
        }
        _ => return Client::open(info).map_err(invalid),
    };
    let info: ConnectionInfo = info.set_addr(ConnectionAddr::TcpTls {
        host,
        port,
        insecure: !tls_verify,
        tls_params: None,
    });
    let certificates = TlsCertificates {
        client_tls: None,
        root_cert: ca,
    };
    Client::build_with_tls(info, certificates).map_err(|_| {
        (
            "ca_file",
            "has a certificate that cannot be read".to_owned(),
        )
    })
}

/// The server, and how to reach it.
pub(super) struct Endpoint {
    client: Client,
    connect_timeout: Duration,
    timeout: Duration,
    wait_replicas: i64,
}

impl Endpoint {
    pub(super) fn new(
        client: Client,
        connect_timeout: Duration,
        timeout: Duration,
        wait_replicas: i64,
    ) -> Self {
        Self {
            client,
            connect_timeout,
            timeout,
            wait_replicas,
        }
    }

    /// Host and port.
    pub(super) fn name(&self) -> String {
        match self.client.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                format!("{host}:{port}")
            }
            _ => "?".to_owned(),
        }
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// A new connection, ready for a transaction.
    pub(super) async fn connect(&self) -> Result<Armed, Trouble> {
        // The whole call has a timeout of its own, and answers may be as late as that.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let connecting = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let connection = tokio::time::timeout(self.connect_timeout, connecting)
            .await
            .map_err(|_| Trouble::NoConnection)?
            .map_err(|error| refused(&error))?;
        let mut armed = Armed {
            connection,
            wait_replicas: self.wait_replicas,
            // Late enough for the rest of the call to be in time.
            patience: self.timeout / 2,
        };
        if self.wait_replicas > 0 {
            // Nothing is written yet: else each attempt without replicas would leave a repeat.
            armed.replicas(Duration::from_millis(1)).await?;
        }
        armed.ask(&redis::cmd("MULTI")).await?;
        Ok(armed)
    }
}

/// A connection of one call at a time, whose `MULTI` is answered.
pub(super) struct Armed {
    connection: MultiplexedConnection,
    wait_replicas: i64,
    patience: Duration,
}

impl Armed {
    /// Sends one command; an error that the server answers is an error.
    pub(super) async fn ask(&mut self, command: &Cmd) -> Result<Value, Trouble> {
        let answer = self.connection.send_packed_command(command).await;
        of_value(answer.map_err(|error| refused(&error))?)
    }

    /// Executes all of these commands or none, and begins the next transaction; says for each whether it failed
    /// by itself, as one does on a key of another type. After an error the connection must not be used again.
    pub(super) async fn transaction(
        &mut self,
        commands: Vec<Cmd>,
    ) -> Result<Vec<Result<(), Trouble>>, Trouble> {
        let count = commands.len();
        let mut pipeline = Pipeline::with_capacity(count + 2);
        for command in commands {
            pipeline.add_command(command);
        }
        pipeline.add_command(redis::cmd("EXEC"));
        if self.wait_replicas == 0 {
            pipeline.add_command(redis::cmd("MULTI"));
        }
        let answers = self
            .connection
            .send_packed_commands(&pipeline, 0, pipeline.len())
            .await
            .map_err(|error| refused(&error))?;
        let mut answers = answers.into_iter();
        for queued in answers.by_ref().take(count) {
            of_value(queued)?;
        }
        let executed = match answers.next().map(of_value) {
            Some(Ok(Value::Array(executed))) if executed.len() == count => executed,
            Some(Err(trouble)) => return Err(trouble),
            _ => return Err(Trouble::NotUnderstood),
        };
        if self.wait_replicas == 0 {
            answers
                .next()
                .map_or(Err(Trouble::NotUnderstood), of_value)?;
        } else {
            // Before the next MULTI: within a transaction WAIT waits for nothing.
            self.replicas(self.patience).await?;
            self.ask(&redis::cmd("MULTI")).await?;
        }
        Ok(executed
            .into_iter()
            .map(|one| of_value(one).map(drop))
            .collect())
    }

    /// Waits until enough replicas have all that this connection wrote.
    async fn replicas(&mut self, patience: Duration) -> Result<(), Trouble> {
        let mut wait = redis::cmd("WAIT");
        // At least 1: 0 would be for ever.
        let millis = u64::try_from(patience.as_millis())
            .unwrap_or(u64::MAX)
            .clamp(1, 3_600_000);
        wait.arg(self.wait_replicas).arg(millis);
        match self.ask(&wait).await? {
            Value::Int(have) if have >= self.wait_replicas => Ok(()),
            Value::Int(have) => Err(Trouble::Replicas {
                have,
                wanted: self.wait_replicas,
            }),
            _ => Err(Trouble::NotUnderstood),
        }
    }
}
