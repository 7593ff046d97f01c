-- pgbench script: one thing that happens in the shop.
\set customer random(1, 2000)
\set what random(1, 100)
\set cents random(500, 90000)
\if :what <= 45
BEGIN;
INSERT INTO orders (customer_id, amount_cents, delivery)
VALUES (:customer, :cents, jsonb_build_object('express', :cents % 3 = 0, 'days', 1 + :cents % 5)) RETURNING id AS placed \gset
INSERT INTO order_lines SELECT :placed, l, 'article ' || (:cents + l) % 500, 1 + l % 3, :cents / 3 FROM generate_series(1, 1 + :cents % 4) AS l;
COMMIT;
\elif :what <= 75
UPDATE orders SET status = 'paid'
WHERE id = (SELECT id FROM orders WHERE status = 'open' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED);
\elif :what <= 82
UPDATE orders SET status = 'cancelled'
WHERE id = (SELECT id FROM orders WHERE status = 'paid' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED);
\elif :what <= 86
DELETE FROM orders
WHERE id = (SELECT id FROM orders WHERE status = 'cancelled' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED);
\elif :what <= 96
UPDATE customers SET email = 'New' || :cents || '@Example' || :cents % 7 || '.com' WHERE id = :customer;
\else
UPDATE customers SET note = note || ' ' || (SELECT string_agg(md5(random()::text), ' ') FROM generate_series(1, 100)) WHERE id = :customer;
\endif
