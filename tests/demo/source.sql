-- The shop: what the application's own schema looks like. Nothing in it knows of spate but the last block.
CREATE TABLE customers (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    email      text NOT NULL,
    country    char(2) NOT NULL,
    joined_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    note       text NOT NULL DEFAULT ''        -- what the hotline wrote down; grows until it is stored apart (TOAST)
);
CREATE TABLE orders (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id  integer NOT NULL REFERENCES customers,
    status       text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'paid', 'cancelled')),
    amount_cents bigint NOT NULL DEFAULT 0,
    placed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    delivery     jsonb
);
CREATE TABLE order_lines (
    order_id    bigint NOT NULL REFERENCES orders ON DELETE CASCADE,
    line        smallint NOT NULL,
    article     text NOT NULL,
    quantity    integer NOT NULL,
    price_cents integer NOT NULL,
    PRIMARY KEY (order_id, line)
);
CREATE INDEX ON orders (status, id);

-- Billing's rows come and go with orders.status, so its sink needs the whole old row of an order.
ALTER TABLE orders REPLICA IDENTITY FULL;

-- All that the connector may do: replicate, and read the catalog and the tables.
CREATE ROLE spate LOGIN REPLICATION;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO spate;
CREATE PUBLICATION spate FOR TABLE customers, orders, order_lines, pgbench_accounts, pgbench_tellers, pgbench_branches
    WITH (publish_via_partition_root = true);
