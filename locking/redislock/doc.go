// Package redislock is two strategies.
package redislock
