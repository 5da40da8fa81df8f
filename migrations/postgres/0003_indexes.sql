-- By themselves, because building one takes long where a table is large: writers of that table wait for it, and
-- nobody else does. What locks whole tables is in 0002, and over in a moment.

create index hole_from on orgstream.hole (org_id, subscription, from_replay_id);
create index hole_acknowledged on orgstream.hole (acknowledged_at) where acknowledged_at is not null;
create index dead_letter_ahead on orgstream.dead_letter (org_id, subscription) where ahead;
create index dead_letter_resolved on orgstream.dead_letter (resolved_at) where resolved_at is not null;
comment on index orgstream.hole_from is 'Whether a hole is recorded already.';
comment on index orgstream.hole_acknowledged is 'What [retention] prunes.';
comment on index orgstream.dead_letter_ahead is 'Letters whose events a stream is to bring once more.';
comment on index orgstream.dead_letter_resolved is 'What [retention] prunes.';
