-- What `postgres` appends is marked as finished, event by event, and that is half of the work. A foreign key looks the
-- subscription up for each mark, though whoever writes marks holds its row already: instead the subscription takes its
-- marks along where it is renamed or deleted, as the key did. And the primary key compares four texts, of which three are
-- the same in all marks of a handler: now the second one tells them apart.
-- Safe while the previous release runs: it writes marks in the same way. `subscription` is locked first, as those do who
-- write.

lock table orgstream.subscription in access exclusive mode;

create function orgstream.take_marks_along() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' then
        delete from orgstream.finished_ahead where org_id = old.org_id and subscription = old.name;
    else
        update orgstream.finished_ahead set org_id = new.org_id, subscription = new.name
        where org_id = old.org_id and subscription = old.name;
    end if;
    return null;
end
$$;
comment on function orgstream.take_marks_along is 'Renames or deletes the marks in finished_ahead with their subscription.';

create trigger renamed after update of org_id, name on orgstream.subscription for each row
    when ((old.org_id, old.name) is distinct from (new.org_id, new.name))
    execute function orgstream.take_marks_along();
create trigger deleted after delete on orgstream.subscription for each row
    execute function orgstream.take_marks_along();

-- By what it is: servers of different ages name it differently.
do $$
declare
    key name;
begin
    for key in select conname from pg_catalog.pg_constraint
        where conrelid = 'orgstream.finished_ahead'::regclass and contype in ('f', 'p')
    loop
        execute format('alter table orgstream.finished_ahead drop constraint %I', key);
    end loop;
end
$$;
alter table orgstream.finished_ahead add primary key (subscription, identity, handler, org_id);
