-- What people see of workers and subscriptions without asking a worker, which on many platforms nobody can reach.
-- Safe while the previous release runs: tables and columns are added, none is taken away. `subscription` is locked
-- first, as those do who write.

alter table orgstream.subscription add column paused_to_rename_at timestamptz;
comment on column orgstream.subscription.paused_to_rename_at is 'Equals paused_at where no person paused it, but `orgstream rename`, which has not come to its end.';

alter table orgstream.dead_letter add column committed_at timestamptz, add column commit_number bigint;
comment on column orgstream.dead_letter.committed_at is 'Commit time of its change; null for a platform event, where the header could not be read, and where an older release parked it.';
comment on column orgstream.dead_letter.commit_number is 'commitNumber of its change: tells changes of one second apart.';

create table orgstream.subscription_sample (
    org_id text not null,
    subscription text not null,
    at timestamptz not null,
    lag_seconds double precision,
    received bigint not null default 0,
    parked bigint not null default 0,
    primary key (org_id, subscription, at),
    foreign key (org_id, subscription) references orgstream.subscription (org_id, name)
        on update cascade on delete cascade
);
comment on table orgstream.subscription_sample is 'How each subscription was, minute by minute, for charts.';
comment on column orgstream.subscription_sample.at is 'Start of the minute.';
comment on column orgstream.subscription_sample.lag_seconds is 'The greatest lag seen in that minute; null where nobody could tell.';
comment on column orgstream.subscription_sample.received is 'Events received in that minute; repeats count.';
comment on column orgstream.subscription_sample.parked is 'Dead letters that were made in that minute.';
create index subscription_sample_at on orgstream.subscription_sample (at);
comment on index orgstream.subscription_sample_at is 'What [retention] prunes.';

create table orgstream.state_change (
    id bigint generated always as identity primary key,
    org_id text not null,
    subscription text not null,
    at timestamptz not null default now(),
    state text not null,
    detail text,
    rpc_id text,
    replay_id bytea,
    worker text,
    epoch bigint not null,
    foreign key (org_id, subscription) references orgstream.subscription (org_id, name)
        on update cascade on delete cascade
);
create index state_change_newest on orgstream.state_change (org_id, subscription, id);
comment on table orgstream.state_change is 'Each change of subscription.state or state_detail, and each change of hands.';
comment on column orgstream.state_change.state is 'connecting, live, paused, reconnecting, blocked, stopped.';
comment on column orgstream.state_change.detail is 'Why, and the cure where a person has to act.';
comment on column orgstream.state_change.rpc_id is 'Salesforce''s name of the call that it came from, for their support; null where no call answered.';
comment on column orgstream.state_change.replay_id is 'Where the stream began or is to begin: it resumes after this place; null at earliest or latest.';
comment on column orgstream.state_change.worker is 'Name of the process that reported it (worker.name).';
comment on column orgstream.state_change.epoch is 'Epoch under which it was reported.';

create table orgstream.worker_snapshot (
    holder text primary key references orgstream.worker (holder) on delete cascade,
    at timestamptz not null default now(),
    body text not null
);
comment on table orgstream.worker_snapshot is 'The last metrics of each worker, which `orgstream web` shows for all of them.';
comment on column orgstream.worker_snapshot.at is 'When the worker posted them.';
comment on column orgstream.worker_snapshot.body is 'Prometheus text format, as the worker itself would serve it.';

create table orgstream.allocation (
    org_id text not null,
    at timestamptz not null,
    max bigint not null,
    remaining bigint not null,
    primary key (org_id, at)
);
comment on table orgstream.allocation is 'What the org said of its daily event deliveries, over all its subscribers.';
comment on column orgstream.allocation.at is 'When it said so.';
comment on column orgstream.allocation.max is 'Events that it may be delivered in 24 hours.';
comment on column orgstream.allocation.remaining is 'What is left of them.';

alter table orgstream.org add column limits_asked_at timestamptz;
comment on column orgstream.org.limits_asked_at is 'When a worker last set out to ask the org for its limits: one does so for all.';
