//! Postgres restarted, failed over, frozen, read-only, full or out of connections, under a daemon that works:
//! what is in flight is kept, the stream stays, and work goes on where it stood when it is back. While the
//! lease cannot be renewed, nothing is handed out (design 3.1, rule 11).

use serde_json::Value;

use crate::stream::{ACCOUNTS, calls, publish};
use crate::support::cluster::Cluster;
use crate::support::{Daemon, Emulator, LOG, Line, Proxy, Store, configured, eventually, names};

/// A server of its own, with a proxy before it that can be led to another.
struct Bed {
    cluster: Cluster,
    proxy: Proxy,
    org: Emulator,
    config: String,
    daemon: Daemon,
}

/// Owned by a user of the same name, who is no superuser: no limit holds for those.
const DATABASE: &str = "app";

/// Ends every session but the one that says so, which belongs to a superuser.
const END_SESSIONS: &str = "select pg_terminate_backend(pid) from pg_stat_activity \
                            where pid <> pg_backend_pid() and backend_type = 'client backend'";

impl Bed {
    /// A daemon that has handled one event and stored its position; `None` where there is no Postgres.
    async fn start() -> Option<Self> {
        let cluster = Cluster::start().await?;
        cluster.sql("postgres", "create role app login").await;
        cluster
            .sql("postgres", "create database app owner app")
            .await;
        let proxy = Proxy::before(cluster.addr()).await;
        let org = Emulator::start().await;
        let store = Store::at(Cluster::url(&proxy.addr.to_string(), "app", DATABASE));
        let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
        let config = configured(&org, &store, "", subscription, LOG).replace(
            "[[subscription]]",
            "timeout = \"1s\"\nlease = \"3s\"\n[[subscription]]",
        );
        let mut daemon = Daemon::run(&config);
        publish(&org, "0").await;
        daemon.handled(1).await;
        let bed = Self {
            cluster,
            proxy,
            org,
            config,
            daemon,
        };
        bed.finished(1).await;
        Some(bed)
    }

    /// What the store says, past the proxy.
    fn store(&self) -> Store {
        Store::at(Cluster::url(&self.cluster.addr(), "postgres", DATABASE))
    }

    /// Waits until the store says that so many are finished; gives the position.
    async fn finished(&self, count: u64) -> String {
        let store = self.store();
        let status = eventually(&format!("{count} finished"), async || {
            let status = store.subscription("accounts").await?;
            (status.finished == count).then_some(status)
        })
        .await;
        status.position.unwrap().to_string()
    }

    /// Publishes events 1 to `count` while the database is away, `back` brings it back, and then all is as
    /// though nothing had been: each event once and in order, one stream, the position at the last event, a
    /// restart that repeats nothing.
    async fn works_on(mut self, count: usize, back: impl AsyncFnOnce(&mut Self)) {
        let mut last = String::new();
        for number in 1..=count {
            last = publish(&self.org, &number.to_string()).await;
        }
        // They are received, handled or not.
        eventually("what is in flight", async || {
            let state = self.org.state().await;
            let delivered = state["streams"][0]["delivered"].as_u64()?;
            (delivered == count as u64 + 1).then_some(())
        })
        .await;
        back(&mut self).await;
        self.daemon.handled(count + 1).await;
        assert_eq!(self.finished(count as u64 + 1).await, last);
        assert_eq!(calls(&self.org, "Subscribe").await, 1, "the stream stays");
        assert_eq!(numbers(&self.daemon.events()), expected(count));
        let next = publish(&self.org, "next").await;
        self.daemon.handled(count + 2).await;
        assert_eq!(self.finished(count as u64 + 2).await, next);
        let (_, code) = self.daemon.stop().await;
        assert_eq!(code, 0);
        publish(&self.org, "more").await;
        let mut daemon = Daemon::run(&self.config);
        daemon.handled(1).await;
        let (events, code) = daemon.stop().await;
        assert_eq!((names(&events).join(" "), code), ("more".to_owned(), 0));
    }

    /// The lease runs out: from here on nothing is handed out.
    async fn lease_runs_out(&self) {
        self.daemon
            .logged(&["leases ran out before they could be renewed"])
            .await;
    }
}

fn numbers(events: &[Value]) -> Vec<String> {
    names(events)
}

fn expected(count: usize) -> Vec<String> {
    (0..=count).map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn a_database_that_is_restarted_in_good_order_loses_nothing() {
    let Some(bed) = Bed::start().await else {
        return;
    };
    bed.cluster.down("fast");
    bed.works_on(20, async |bed| bed.cluster.up()).await;
}

#[tokio::test]
async fn a_database_that_crashes_and_is_away_for_longer_than_the_lease_loses_nothing() {
    let Some(bed) = Bed::start().await else {
        return;
    };
    bed.cluster.down("immediate");
    bed.lease_runs_out().await;
    bed.works_on(20, async |bed| {
        let handled = bed.daemon.events().len();
        assert_eq!(handled, 1, "nothing is handed out without a lease");
        bed.cluster.up();
    })
    .await;
}

#[tokio::test]
async fn a_database_that_freezes_for_longer_than_the_lease_loses_nothing() {
    let Some(bed) = Bed::start().await else {
        return;
    };
    bed.cluster.signal("STOP");
    bed.lease_runs_out().await;
    bed.works_on(20, async |bed| bed.cluster.signal("CONT"))
        .await;
}

#[tokio::test]
async fn a_database_whose_sessions_are_ended_again_and_again_loses_nothing() {
    let Some(bed) = Bed::start().await else {
        return;
    };
    let mut last = String::new();
    let mut daemon = bed.daemon;
    for number in 1..=20 {
        bed.cluster.sql(DATABASE, END_SESSIONS).await;
        last = publish(&bed.org, &number.to_string()).await;
        daemon.handled(number + 1).await;
    }
    let store = Store::at(Cluster::url(&bed.cluster.addr(), "postgres", DATABASE));
    store
        .until("accounts", "the last position", |s| {
            s.position.as_ref().is_some_and(|p| p.to_string() == last)
        })
        .await;
    assert_eq!(calls(&bed.org, "Subscribe").await, 1);
    let (events, code) = daemon.stop().await;
    assert_eq!((numbers(&events), code), (expected(20), 0));
}

#[tokio::test]
async fn a_database_that_is_read_only_for_a_while_loses_nothing() {
    let Some(bed) = Bed::start().await else {
        return;
    };
    // For sessions that begin from now on; those that are open go.
    let read_only = "alter database app set default_transaction_read_only = on";
    bed.cluster.sql("postgres", read_only).await;
    bed.cluster.sql("postgres", END_SESSIONS).await;
    bed.lease_runs_out().await;
    bed.daemon.logged(&["the database is read-only"]).await;
    bed.works_on(20, async |bed| {
        let writable = "alter database app reset default_transaction_read_only";
        bed.cluster.sql("postgres", writable).await;
        bed.cluster.sql("postgres", END_SESSIONS).await;
    })
    .await;
}

#[tokio::test]
async fn a_database_that_takes_no_connections_for_a_while_loses_nothing() {
    let Some(bed) = Bed::start().await else {
        return;
    };
    let none = "alter database app connection limit 0";
    bed.cluster.sql("postgres", none).await;
    bed.cluster.sql("postgres", END_SESSIONS).await;
    bed.lease_runs_out().await;
    bed.daemon.logged(&["53300"]).await;
    bed.works_on(20, async |bed| {
        let any = "alter database app connection limit -1";
        bed.cluster.sql("postgres", any).await;
    })
    .await;
}

/// No test can fill a disk that it does not own: a trigger that fails as a full disk does (SQLSTATE 53100) on
/// every write of ours stands for it. What Postgres itself does without room, as when it cannot write its log
/// and stops, is what the tests of a crash show.
#[tokio::test]
async fn a_database_that_is_out_of_disk_for_a_while_loses_nothing() {
    let Some(bed) = Bed::start().await else {
        return;
    };
    bed.cluster
        .sql(
            DATABASE,
            "create function no_room() returns trigger language plpgsql as $$ begin \
             raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$; \
             do $$ declare t text; begin \
             for t in select tablename from pg_tables where schemaname = 'orgstream' loop \
             execute format('create trigger no_room before insert or update or delete on orgstream.%I \
                             execute function no_room()', t); end loop; end $$",
        )
        .await;
    bed.lease_runs_out().await;
    bed.daemon.logged(&["53100"]).await;
    bed.works_on(20, async |bed| {
        bed.cluster
            .sql(DATABASE, "drop function no_room() cascade")
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_database_that_fails_over_to_its_standby_loses_nothing() {
    let Some(bed) = Bed::start().await else {
        return;
    };
    let standby = bed.cluster.standby();
    // What the standby had not got would be handled again, as after a kill.
    bed.cluster.caught_up(&standby).await;
    bed.proxy.set(Line::Cut);
    bed.cluster.down("immediate");
    bed.lease_runs_out().await;
    bed.works_on(20, async |bed| {
        standby.promote();
        bed.proxy.lead_to(standby.addr());
        bed.proxy.set(Line::Carry);
        bed.cluster = standby;
    })
    .await;
}

#[tokio::test]
async fn a_hung_database_bounds_what_is_in_flight_and_no_event_is_asked_for_beyond() {
    let Some(bed) = Bed::start().await else {
        return;
    };
    let Bed {
        cluster,
        proxy,
        org,
        config,
        daemon,
    } = bed;
    assert_eq!(daemon.stop().await.1, 0);
    let config = config.replace(
        "start = \"earliest\"",
        "start = \"earliest\"\nmax_in_flight = 30",
    );
    let mut daemon = Daemon::run(&config);
    publish(&org, "1").await;
    daemon.handled(1).await;
    proxy.set(Line::Hang);
    daemon
        .logged(&["leases ran out before they could be renewed"])
        .await;
    for number in 2..=100 {
        publish(&org, &number.to_string()).await;
    }
    // With no credit left, nothing more can come.
    let stream = eventually("a stream that asks for nothing", async || {
        let state = org.state().await;
        let stream = state["streams"].as_array()?.last()?.clone();
        (stream["pending"] == 0).then_some(stream)
    })
    .await;
    let delivered = stream["delivered"].as_u64().unwrap();
    assert!((30..=31).contains(&delivered), "{stream}");
    proxy.set(Line::Carry);
    daemon.handled(100).await;
    let seen = numbers(&daemon.events());
    assert_eq!(seen, expected(100)[1..]);
    assert_eq!(daemon.stop().await.1, 0);
    drop(cluster);
}
