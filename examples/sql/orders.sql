-- Keeps a row for each event of a platform event, many in one call.
--
--     [[subscription]]
--     name = "orders"
--     topic = "Order__e"
--
--     [[subscription.handler]]
--     name = "order-rows"
--     type = "postgres"
--     mode = "call"
--     function = "crm.on_orders"
--     batch = true

create schema if not exists crm;

create table if not exists crm.order_event (
    number bigint generated always as identity primary key,
    event_id text not null,
    received_at timestamptz not null,
    data jsonb not null
);

create or replace function crm.on_orders(events jsonb[]) returns void language sql as $$
    insert into crm.order_event (event_id, received_at, data)
    select e.event ->> 'id', (e.event ->> 'time')::timestamptz, e.event -> 'data'
    from unnest(events) with ordinality as e (event, place)
    -- As they stand in the array, which is the order of the bus.
    order by e.place
$$;
