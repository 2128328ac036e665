// SPDX-License-Identifier: Apache-2.0

package loader

// Devices says which programs are on record for which devices, by ifindex, in the
// namespace of this thread; whether they do their work Attachments says.
func Devices(pins string) (map[int][]string, error) {
	here, err := NetnsCookie()
	if err != nil {
		return nil, err
	}
	records, err := readRecords(pins)
	if err != nil {
		return nil, err
	}
	on := make(map[int][]string)
	for _, r := range records {
		if r.ifindex != 0 && r.cookie == here {
			on[r.ifindex] = append(on[r.ifindex], r.program)
		}
	}
	return on, nil
}
