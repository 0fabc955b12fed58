package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
)

// Tx is one transaction. It is used by one goroutine and dies with its function;
// it holds its context because it lives no longer than the call that brought it.
type Tx struct {
	ctx     context.Context
	q       querier
	store   *Store
	scope   Scope
	now     time.Time
	writes  bool
	made    bool // something was made in the namespace
	events  []Event
	touched []node
}

type querier interface {
	exec(ctx context.Context, query string, args ...any) error
	query(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Any is a payload that berth keeps and does not read.
type Any = spec.Any

// Namespace is the namespace of the transaction.
func (tx *Tx) Namespace() string { return tx.scope.Namespace }

// Now is the time of the transaction: all that it makes has the same.
func (tx *Tx) Now() time.Time { return tx.now }

func (tx *Tx) emit(topic string, body any) { tx.emitIn(tx.scope.Namespace, topic, body) }

func (tx *Tx) emitIn(ns, topic string, body any) {
	tx.events = append(tx.events, Event{Namespace: ns, Topic: topic, Body: body, At: tx.now})
}

func (tx *Tx) exec(query string, args ...any) error {
	if err := tx.q.exec(tx.ctx, query, args...); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	return nil
}

// scanner is the part of a row that scan functions need.
type scanner interface{ Scan(dest ...any) error }

// many runs a query and reads every row.
func many[T any](tx *Tx, scan func(scanner) (T, error), query string, args ...any) (out []T, err error) {
	rows, err := tx.q.query(tx.ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// one runs a query that gives at most one row; none is sql.ErrNoRows.
func one[T any](tx *Tx, scan func(scanner) (T, error), query string, args ...any) (T, error) {
	var zero T
	all, err := many(tx, scan, query, args...)
	if err != nil {
		return zero, err
	}
	if len(all) == 0 {
		return zero, sql.ErrNoRows
	}
	return all[0], nil
}

func scanOne[T any](s scanner) (v T, err error) { return v, s.Scan(&v) }

// exists reports whether a query gives any row.
func (tx *Tx) exists(query string, args ...any) (bool, error) {
	_, err := one(tx, scanOne[int64], query, args...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// missing turns "no rows" into NotFound with a name.
func missing(err error, format string, args ...any) error {
	if errors.Is(err, sql.ErrNoRows) {
		return errs.New(errs.NotFound, format+": not found", args...)
	}
	return err
}

// labels is a map column.
type labels map[string]string

func (l *labels) Scan(v any) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf("labels: %T in the database", v)
	}
	if s == "{}" {
		*l = nil
		return nil
	}
	return json.Unmarshal([]byte(s), (*map[string]string)(l))
}

// encode gives a map its column form; empty values are dropped, as containerd's
// store drops them.
func encode(m map[string]string) string {
	clean := m
	for _, v := range m {
		if v == "" {
			clean = map[string]string{}
			for k, v := range m {
				if v != "" {
					clean[k] = v
				}
			}
			break
		}
	}
	if len(clean) == 0 {
		return "{}"
	}
	b, err := json.Marshal(clean)
	if err != nil { // a map of strings cannot fail
		panic(err)
	}
	return string(b)
}

func decodeExtensions(s string) (map[string]Any, error) {
	if s == "{}" {
		return nil, nil
	}
	var m map[string]Any
	return m, json.Unmarshal([]byte(s), &m)
}

func encodeExtensions(m map[string]Any) string {
	if len(m) == 0 {
		return "{}"
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func at(ns int64) time.Time { return time.Unix(0, ns).UTC() }
