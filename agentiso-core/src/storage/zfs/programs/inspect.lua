-- What a file system is, and whose.
if not zfs.exists(args.name) then
  return { exists = false }
end
return {
  exists = true,
  type = zfs.get_prop(args.name, "type"),
  state = own(args.name, args.state),
}
