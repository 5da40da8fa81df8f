-- What migrations/postgres/0003_indexes.sql adds.

create index hole_from on hole (org_id, subscription, from_replay_id);
create index hole_acknowledged on hole (acknowledged_at) where acknowledged_at is not null;
create index dead_letter_ahead on dead_letter (org_id, subscription) where ahead;
create index dead_letter_resolved on dead_letter (resolved_at) where resolved_at is not null;
